import type { App } from "../app.ts";
import type { Binding } from "../consume/handler.ts";
import type { ConsumerDefinition } from "../define/consumer.ts";
import { SortieError, shown } from "../errors.ts";

/** What a cron trigger starts: some of the app's consumers, the release function, or both. */
export type CronJob =
  | "release"
  | {
      readonly consumers: readonly Pick<ConsumerDefinition, "kind" | "name">[];
      /** Whether it releases what is due as well. @default false */
      readonly release?: boolean;
    };

/** A cron job, looked up. */
export interface Due {
  readonly bindings: readonly Binding[];
  readonly releases: boolean;
}

/** The highest number in each field. */
const highest = [59, 23, 31, 12, 7];
const parts = /^(\d+|\*|\?|L|W|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT|[-,/#])+$/i;

/** Whether it may be one: Cloudflare takes what croner does not, such as `5/15` and `L-3`. */
function isCron(expression: string): boolean {
  const fields = expression.split(" ");
  const isField = (field: string, at: number) =>
    parts.test(field) && (field.match(/\d+/g) ?? []).every((number) => Number(number) <= (highest[at] ?? 0));
  return fields.length === highest.length && fields.every(isField);
}

const spelt = (cron: string) => cron.trim().split(/\s+/).join(" ");

/**
 * What each cron trigger starts, by its expression as `wrangler.toml` has it; without `crons` each starts everything.
 * @throws SortieError `invalid-option` for what is no cron or no job, and for a consumer without a handler in the app. What it answers throws `not-configured`
 * for a trigger that is not among them.
 */
export function jobsByCron(
  { bindings, streams }: App,
  crons?: Readonly<Record<string, CronJob>>,
): (cron: string) => Due {
  const schedules = streams.some((stream) => stream.schedules);
  if (!crons) return () => ({ bindings, releases: schedules });
  const jobs = new Map<string, Due>();
  if (Object.keys(crons).length === 0)
    throw new SortieError(
      "invalid-option",
      "crons: expected one at least; leave it out for each trigger to start everything",
    );
  for (const [cron, job] of Object.entries(crons)) {
    const five = spelt(cron);
    if (!isCron(five)) refuse(cron, "an expression of five fields, as wrangler.toml has it");
    if (jobs.has(five)) refuse(cron, "each expression once, whatever its spaces");
    jobs.set(five, dueOf(cron, job));
  }
  return (cron) => {
    const job = jobs.get(spelt(cron));
    if (job) return job;
    throw new SortieError(
      "not-configured",
      `The cron trigger "${cron}" started this Worker, but serve(app, { crons }) knows only ${[...jobs.keys()].map((one) => `"${one}"`).join(", ")}: nothing was run. Add it there, or take it out of the triggers of wrangler.toml`,
    );
  };

  function refuse(cron: string, expected: string): never {
    throw new SortieError("invalid-option", `crons["${cron}"]: expected ${expected}`);
  }

  function dueOf(cron: string, job: CronJob): Due {
    if (job === "release") return { bindings: [], releases: true };
    const asked: unknown = typeof job === "object" && job !== null ? job.consumers : undefined;
    if (!Array.isArray(asked) || (asked.length === 0 && !job.release))
      refuse(cron, '"release", or { consumers: […] } with one at least');
    const due = job.consumers.map((wanted: Partial<ConsumerDefinition> | undefined, at) => {
      const binding = bindings.find(({ consumer }) => (consumer as unknown) === wanted);
      if (binding) return binding;
      if (wanted?.kind !== "consumer") {
        const why = wanted === undefined ? "; a module that imports itself in a circle has none yet" : "";
        throw new SortieError(
          "invalid-option",
          `crons["${cron}"].consumers[${at}]: expected a consumer as defineConsumer made it, got ${shown(wanted)}${why}`,
        );
      }
      throw new SortieError(
        "invalid-option",
        `crons["${cron}"]: consumer "${wanted.name}" has no handler in this app; give it one with createApp(…).on(…), or take it out`,
      );
    });
    return { bindings: due, releases: job.release ?? false };
  }
}
