import type { FanOut } from "../define/fan-out.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { pause, within } from "../nats/within.ts";
import type { Clock } from "./clock.ts";
import { type Progress, planContinuation } from "./fan-out.ts";
import { changePlaces, endingAt, type Place } from "./places.ts";
import type { InvocationReport } from "./report.ts";

/**
 * Starts an invocation for each of `places`, which it is to be given, once for each: what it answers is waited for, what it
 * throws is in the report.
 */
export type OnMore = (places: readonly Place[], report: InvocationReport) => unknown;

export interface ContinuationOptions {
  readonly onMore?: OnMore | undefined;
  readonly fanOut?: FanOut | undefined;
  /** The invocation's own. */
  readonly place?: Place | undefined;
  readonly started: number;
  /** When the invocation must be over, as its platform says. */
  readonly deadline: number;
  now(): number;
}

/** How an invocation goes on in others. */
export interface Continuation {
  /** When all but going on must be over, in epoch milliseconds. */
  readonly consumeBy: number;
  /** Takes note of what is left of a consumer; undefined where nobody wants to know. */
  readonly left: ((progress: Progress) => void) | undefined;
  /** Takes a place for each invocation to start, or gives the own one back: over a connection that is closed thereafter. */
  decide(connection: Connection, clock: Pick<Clock, "serverNow">, report: InvocationReport): Promise<void>;
  /** Asks for what was decided on, once the server has seen the connection's end: with it, there would be one too many. */
  start(connection: Connection, clock: Pick<Clock, "roundTripMs">, report: InvocationReport): Promise<void>;
}

/** How long an invocation that is asked for may take to start. */
const startMs = 10_000;

/** Whether too little is left of a place: handlers would be started only to be cut off. */
export function isLate(place: Place, deadline: number, now: number): boolean {
  return place.until - now < (deadline - now) / 2;
}

/** Throws `invalid-option` for `onMore` without the app's `fanOut`: each tick would start another chain of invocations. */
export function assertFanOut(fanOut: FanOut | undefined, onMore: unknown): void {
  if (!onMore || fanOut) return;
  throw new SortieError(
    "invalid-option",
    "onMore: expected the app to say how far invocations may fan out, as in createApp({ streams, fanOut: { max: 8 } })",
  );
}

/** Undefined where the invocation neither goes on nor has a place to give back. */
export function openContinuation(options: ContinuationOptions): Continuation | undefined {
  const { onMore, fanOut, place, started, deadline, now } = options;
  assertFanOut(fanOut, onMore);
  if (!onMore && !place) return undefined;
  const overBy = place ? Math.min(deadline, place.until) : deadline;
  const budgetMs = deadline - started;
  const reserveMs = Math.min(1_000, (overBy - started) / 10);
  const consumers: Progress[] = [];
  let places: readonly Place[] = [];

  return {
    consumeBy: overBy - reserveMs,
    left: onMore && ((progress) => void consumers.push(progress)),
    async decide(connection, { serverNow }, report) {
      const goesOn = onMore && fanOut && consumers.some(({ ready, done }) => ready > 0 && done > 0);
      if (!goesOn && !place) return;
      let taken: readonly Place[] = [];
      try {
        await changePlaces(connection, { now, serverNow, by: overBy - reserveMs / 2 }, (leases) => {
          const others = leases.filter(({ id }) => id !== place?.id);
          const count = goesOn
            ? planContinuation({
                consumers,
                ms: now() - started,
                budgetMs,
                max: fanOut.max,
                others: others.filter(({ ended }) => !ended).length,
                free: fanOut.places - others.length - (place ? 1 : 0),
                placed: place !== undefined,
              })
            : 0;
          const until = Math.round(serverNow() + startMs + budgetMs);
          taken = Array.from({ length: count }, () => ({ id: crypto.randomUUID(), until }));
          if (count > 0) return [...others, ...taken];
          return place && [...others, endingAt(place, serverNow())];
        });
        places = taken;
        if (goesOn) report.continued = { asked: 0 };
      } catch (error) {
        report.continued = { asked: 0, error: textOf(error) }; // what was taken, if it was, lapses
      }
    },
    async start(connection, { roundTripMs }, report) {
      if (!onMore || places.length === 0) return;
      const closedAt = now();
      const leftMs = () => overBy - now();
      try {
        await within(Math.min(1_000, leftMs()), "waiting for the connection's end", connection.closed());
        // where the answer to the close was not waited for: one flight is all it takes the server to see it
        await pause(Math.min(closedAt + roundTripMs - now(), leftMs()), "waiting for the server to see that");
        if (leftMs() <= 0) throw new SortieError("timed-out", "There was no time left to ask for more invocations");
        report.continued = { asked: places.length };
        const asked = Promise.resolve(onMore(places, report));
        await within(leftMs(), "asking for more invocations", asked);
      } catch (error) {
        report.continued = { asked: report.continued?.asked ?? 0, error: textOf(error) };
      }
    },
  };
}
