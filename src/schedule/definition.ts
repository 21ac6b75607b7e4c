import type { StandardSchemaV1 } from "@standard-schema/spec";
import { type StreamDefinition, type Subjects, schemaOf } from "../define/stream.ts";
import { isLiteral, type Literal } from "../define/subject.ts";
import { SortieError, shown } from "../errors.ts";
import { encode } from "../schema.ts";
import { type RecurringOptions, recurringOf } from "./recurring.ts";
import { tokenOf } from "./when.ts";

/** A schedule that comes again, as plain data: it connects to nothing and can be imported anywhere. */
export interface ScheduleDefinition<Stream extends StreamDefinition = StreamDefinition> {
  readonly kind: "schedule";
  readonly stream: Stream;
  readonly id: string;
  readonly subject: string;
  /** JSON; checked against the subject's schema when it is applied. */
  readonly payload: Uint8Array;
  readonly recurring: RecurringOptions;
}

/** What is released each time, and when. */
export type DefinedSchedule<S extends Subjects> = RecurringOptions &
  {
    [Pattern in keyof S & string]: {
      /** One of the stream's subjects. */
      subject: Literal<Pattern>;
      /** The message, as a publisher would give it. */
      data: StandardSchemaV1.InferInput<S[Pattern]>;
    };
  }[keyof S & string];

/**
 * Defines a schedule that comes again, for an app's `schedules`. `sortie apply` makes it, changes it where its definition has
 * changed, and cancels it where the app has it no more.
 * @throws SortieError `invalid-definition` for a subject without a schema, `invalid-option` for a time that is none,
 * `invalid-payload` for what JSON cannot carry.
 * @example
 * export const nightly = defineSchedule(reports, "nightly", {
 *   subject: "reports.build", data: { kind: "daily" }, cron: "0 2 * * *", timeZone: "Europe/Berlin", overlap: "skip",
 * });
 */
export function defineSchedule<S extends Subjects>(
  stream: StreamDefinition<S>,
  id: string,
  { subject, data, ...recurring }: DefinedSchedule<S>,
): ScheduleDefinition<StreamDefinition<S>> {
  const what = `Schedule "${id}" of stream "${stream.name}"`;
  const options = recurring as unknown as RecurringOptions;
  tokenOf(id);
  if (!stream.schedules)
    throw new SortieError("invalid-definition", `${what}: its stream is defined with \`schedules: false\``);
  if (typeof subject !== "string" || !isLiteral(subject) || !schemaOf(stream, subject)) {
    const known = Object.keys(stream.schemas).join(", ");
    throw new SortieError(
      "invalid-definition",
      `${what}: expected a subject without wildcards that its stream has a schema for (${known}), got ${shown(subject)}`,
    );
  }
  const { until: _, ...endless } = options; // one that has ended is still a definition
  recurringOf(endless as RecurringOptions, 0, what);
  return { kind: "schedule", stream, id, subject, payload: encode(subject, data), recurring: options };
}
