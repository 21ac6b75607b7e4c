import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";
import type { Schema } from "../schema.ts";
import { assertCounts } from "./count.ts";
import { assertName, assertPattern, covers } from "./subject.ts";

/** A schema for each subject, or subject pattern, of a stream. */
export type Subjects = Readonly<Record<string, Schema>>;

export interface StreamOptions<S extends Subjects> {
  /** The subjects that the app publishes and handles, with the schema of their payloads; wildcards allowed. */
  subjects?: S;
  /** Further subjects that the stream stores as they come: dead letters, or what others publish. */
  captures?: readonly string[];
  /**
   * `"limits"` keeps messages until a limit is reached, so that every consumer sees them; `"workqueue"` deletes each one
   * when it is acknowledged. @default "limits"
   */
  retention?: "limits" | "workqueue";
  /** @default "file" */
  storage?: "file" | "memory";
  /** Copies in a cluster. @default 1 */
  replicas?: number;
  /** Messages older than this are deleted. @default unlimited */
  maxAge?: Duration;
  /** Above this many messages the oldest are deleted; a work queue, which must lose none, takes no more. @default unlimited */
  maxMessages?: number;
  /** As `maxMessages`, in bytes. @default unlimited */
  maxBytes?: number;
  /** How long a message id is remembered, so that a second publish with it stores nothing. @default "2m", or `maxAge` where that is shorter */
  duplicateWindow?: Duration;
  /**
   * Whether messages can be scheduled into this stream, and who releases them: `true` for the server itself where it does
   * that (2.12), a function where it does not; `"function"` for a function on every server, which is exact to milliseconds
   * and keeps what waits out of this stream. @default true where the subjects have schemas; `"function"` with `maxMessages`
   * or `maxBytes`, which would push schedules out
   */
  schedules?: boolean | "function";
}

/** A stream as plain data: it connects to nothing and can be imported anywhere. */
export interface StreamDefinition<S extends Subjects = Subjects> {
  readonly kind: "stream";
  readonly name: string;
  /** All that it stores, but for its schedules. */
  readonly subjects: readonly string[];
  readonly schemas: S;
  readonly retention: "limits" | "workqueue";
  readonly storage: "file" | "memory";
  readonly replicas: number;
  /** 0 for no limit. */
  readonly maxAgeMs: number;
  /** -1 for no limit. */
  readonly maxMessages: number;
  /** -1 for no limit. */
  readonly maxBytes: number;
  /** -1 for no limit. Of a subject with more the oldest go. */
  readonly maxMessagesPerSubject: number;
  readonly duplicateWindowMs: number;
  /** Who releases what is scheduled into it: the server where it can, or always a function; false for nobody. */
  readonly schedules: "server" | "function" | false;
  /** Whether a message may say for how long it is kept (2.11). */
  readonly messageTtl: boolean;
}

/**
 * Defines a stream. `sortie apply` creates it on the server.
 * @throws SortieError `invalid-definition` for a name, subject or limit that the server would refuse, or that would lose work.
 * @example
 * export const orders = defineStream("ORDERS", {
 *   subjects: { "orders.placed": z.object({ orderId: z.string() }) },
 *   maxAge: "30d",
 * });
 */
export function defineStream<const S extends Subjects = Record<never, never>>(
  name: string,
  options: StreamOptions<S>,
): StreamDefinition<S> {
  const what = `Stream "${name}"`;
  assertName(name, what);
  const schemas = options.subjects ?? ({} as S);
  const subjects = [...Object.keys(schemas), ...(options.captures ?? [])];
  if (subjects.length === 0)
    throw new SortieError("invalid-definition", `${what}: expected \`subjects\` or \`captures\`, got neither`);
  for (const [index, subject] of subjects.entries()) {
    assertPattern(subject, what);
    const twin = subjects.find((other, at) => at !== index && covers(other, subject));
    if (twin)
      throw new SortieError(
        "invalid-definition",
        `${what}: "${twin}" already covers "${subject}"; leave one of them out`,
      );
  }
  const retention = options.retention ?? "limits";
  if (!["limits", "workqueue"].includes(retention)) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected retention "limits" or "workqueue", got "${retention}" (interest retention drops what is published while no consumer exists)`,
    );
  }
  const maxAgeMs = options.maxAge === undefined ? 0 : toMs(options.maxAge, `${what}, maxAge`);
  const duplicateWindowMs =
    options.duplicateWindow === undefined
      ? Math.min(120_000, maxAgeMs || Infinity)
      : toMs(options.duplicateWindow, `${what}, duplicateWindow`);
  if (duplicateWindowMs < 1_000) {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected duplicateWindow of a second or more, got ${duplicateWindowMs} ms`,
    );
  }
  if (maxAgeMs > 0 && duplicateWindowMs > maxAgeMs) {
    throw new SortieError(
      "invalid-definition",
      `${what}: duplicateWindow (${duplicateWindowMs} ms) must not be longer than maxAge (${maxAgeMs} ms)`,
    );
  }
  const { maxMessages = -1, maxBytes = -1, replicas = 1 } = options;
  const limited = maxMessages !== -1 || maxBytes !== -1;
  assertCounts({ replicas }, what);
  if (maxMessages !== -1) assertCounts({ maxMessages }, what);
  if (maxBytes !== -1) assertCounts({ maxBytes }, what);
  if (limited && options.schedules === true) {
    throw new SortieError(
      "invalid-definition",
      `${what}: maxMessages and maxBytes would push schedules out before they are due; leave them out, or set \`schedules: "function"\`, which keeps schedules elsewhere`,
    );
  }
  const { schedules = Object.keys(schemas).length > 0 && (limited ? "function" : true) } = options;
  if (schedules !== "function" && typeof schedules !== "boolean") {
    throw new SortieError(
      "invalid-definition",
      `${what}: expected schedules true, false or "function", got ${shown(schedules)}`,
    );
  }
  return {
    kind: "stream",
    name,
    subjects,
    schemas,
    retention,
    storage: options.storage ?? "file",
    replicas,
    maxAgeMs,
    maxMessages,
    maxBytes,
    maxMessagesPerSubject: -1,
    duplicateWindowMs,
    schedules: schedules === true ? "server" : schedules,
    messageTtl: false,
  };
}

/** The schema of a literal subject, or undefined where the stream has none for it. */
export function schemaOf(stream: StreamDefinition, subject: string): Schema | undefined {
  const { schemas } = stream;
  if (Object.hasOwn(schemas, subject)) return schemas[subject];
  const pattern = Object.keys(schemas).find((pattern) => covers(pattern, subject));
  return pattern === undefined ? undefined : schemas[pattern];
}
