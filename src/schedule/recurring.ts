import { type Duration, toMs } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";
import type { Headers } from "../publish/outgoing.ts";
import { latestUntil, nextAfter, type Recurrence, type RecurrenceOptions, recurrenceOf } from "./recurrence.ts";
import { assertAlone, idHeader, releasedHeaders } from "./when.ts";

/** How a schedule comes again. */
export type RecurringOptions = RecurrenceOptions & {
  /**
   * What becomes of the times that passed by more than two minutes ago when nothing released them: each is released, in
   * their order; only the latest; or none. @default "latest"; with `overlap: "queue"` "all"
   */
  catchUp?: CatchUp;
  /**
   * What becomes of one whose predecessor is not handled yet: it is released all the same; left out; or released when the
   * predecessor is handled. Handled is what every consumer of its subject has acknowledged, dead-lettered, or never had.
   * @default "allow"
   */
  overlap?: Overlap;
  /**
   * Each is released up to so much later, by what its id and time make of it: many of the same time are spread. Shorter than
   * the time between two of them; the last one is not put off beyond `until`. @default 0
   */
  jitter?: Duration;
};

export type CatchUp = "all" | "latest" | "skip";
export type Overlap = "allow" | "skip" | "queue";

/** How a schedule comes again, as it is stored. */
export type Recurring = Recurrence & {
  readonly catchUp: CatchUp;
  readonly overlap: Overlap;
  readonly jitterMs: number;
};

/** One of its times. */
export interface Occurrence {
  /** What its recurrence says, in epoch milliseconds. */
  readonly planned: number;
  /** That and its jitter: when it is released. */
  readonly due: number;
}

/** Later than this a time has passed by: a tick of every minute, and as much again. */
const missedAfterMs = 120_000;

/** @throws SortieError `invalid-option` for what cannot come again. */
export function recurringOf(options: RecurringOptions, now: number, what: string): Recurring {
  assertAlone(options, what);
  const { overlap = "allow", jitter = 0, ...others } = options;
  const { catchUp = overlap === "queue" ? "all" : "latest", ...when } = others;
  assertOneOf("catchUp", ["all", "latest", "skip"], catchUp);
  assertOneOf("overlap", ["allow", "skip", "queue"], overlap);
  if (overlap === "queue" && catchUp !== "all") {
    throw new SortieError(
      "invalid-option",
      `${what}: expected catchUp "all" with overlap "queue", for what waits in line is not to pass by, got "${catchUp}"`,
    );
  }
  const jitterMs = toMs(jitter, `${what}, jitter`);
  const recurrence = recurrenceOf(when as RecurrenceOptions, now, what);
  if (jitterMs >= shortestOf(recurrence, now)) {
    throw new SortieError(
      "invalid-option",
      `${what}: expected a jitter shorter than the time between two releases, got ${shown(jitter)}`,
    );
  }
  return { ...recurrence, catchUp, overlap, jitterMs };

  function assertOneOf(name: string, known: readonly string[], got: string): void {
    if (known.includes(got)) return;
    throw new SortieError(
      "invalid-option",
      `${what}: expected ${name} ${known.map((one) => `"${one}"`).join(" or ")}, got ${shown(got)}`,
    );
  }
}

/** The message id of what is released at one of its times: once, also where the schedule is made again meanwhile. */
export function releaseIdOf({ id, planned }: { readonly id: string; readonly planned: number }): string {
  return `sortie.release.${id}@${planned}`;
}

/** The headers of what is released at one of its times, which tell of it; `own` are the message's. */
export function releasedFor(
  { id, planned, at }: { readonly id: string; readonly planned: number; readonly at: number },
  own: Headers,
): Headers {
  return [
    ...own.filter(([header]) => header !== idHeader),
    [idHeader, `${id}@${new Date(planned).toISOString()}`],
    [releasedHeaders.schedule, id],
    [releasedHeaders.scheduledFor, at === planned ? `${planned}` : `${planned} ${at}`],
  ];
}

/** The shortest time between two of the next ones, in milliseconds; Infinity for one that comes once. */
function shortestOf(recurrence: Recurrence, now: number): number {
  let [shortest, at] = [Infinity, nextAfter(recurrence, now)];
  for (let n = 0; n < looked && at !== undefined; n++) {
    const next = nextAfter(recurrence, at);
    if (next !== undefined) shortest = Math.min(shortest, next - at);
    at = next;
  }
  return shortest;
}

const looked = 20;

/** The first one after `after`; undefined where none comes any more. */
export function occurrenceAfter(recurring: Recurring, id: string, after: number): Occurrence | undefined {
  return occurrenceAt(recurring, id, nextAfter(recurring, after));
}

/** The next `count` after `after`. */
export function occurrencesAfter(recurring: Recurring, after: number, count: number): Date[] {
  const times: Date[] = [];
  for (let at = nextAfter(recurring, after); at !== undefined && times.length < count; at = nextAfter(recurring, at))
    times.push(new Date(at));
  return times;
}

/**
 * Which one is released now instead of the one that was planned: that one, where it has not passed by, or each is wanted; else
 * the latest, or the one that comes next; undefined where none does.
 */
export function caughtUp(recurring: Recurring, id: string, planned: number, now: number): Occurrence | undefined {
  const passedBy = now - (occurrenceAt(recurring, id, planned)?.due ?? now) > missedAfterMs;
  if (!passedBy || recurring.catchUp === "all") return occurrenceAt(recurring, id, planned);
  if (recurring.catchUp === "skip") return occurrenceAfter(recurring, id, now - missedAfterMs);
  return occurrenceAt(recurring, id, latestUntil(recurring, planned, now) ?? planned);
}

function occurrenceAt(recurring: Recurring, id: string, planned: number | undefined): Occurrence | undefined {
  if (planned === undefined) return undefined;
  const { jitterMs, until = Infinity } = recurring;
  const spread = jitterMs > 0 ? hashOf(`${id} ${planned}`) % (jitterMs + 1) : 0;
  return { planned, due: Math.min(planned + spread, Math.max(planned, until)) };
}

/** FNV-1a of its bytes, or a text's UTF-16 units, with a finishing mix: neighbouring times are to lie far apart. */
export function hashOf(units: string | Uint8Array): number {
  const unitAt = (at: number) => (typeof units === "string" ? units.charCodeAt(at) : (units[at] as number));
  let hash = 0x811c9dc5;
  for (let at = 0; at < units.length; at++) hash = Math.imul(hash ^ unitAt(at), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}
