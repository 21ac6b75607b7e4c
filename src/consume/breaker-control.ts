import type { ConsumerDefinition } from "../define/consumer.ts";
import { breakerSubject, breakersStream } from "../define/own.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { pauseConsumer, pausedUntil, resumeConsumer } from "../nats/pause-consumer.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { type BreakerState, closed, opened, pauseOf } from "./breaker-state.ts";

/** How a circuit breaker stands. Dates are those of the host that decided. */
export type BreakerStatus =
  | {
      readonly state: "closed";
      /** The consumer is paused on the server until then all the same: not by its breaker. */
      readonly pausedUntil?: Date;
    }
  | { readonly state: "open"; readonly since: Date; readonly until: Date; readonly reason: string }
  | { readonly state: "half-open"; readonly since: Date; readonly until: Date };

/** Looks at a consumer's circuit breaker. */
export async function readBreaker(
  connection: Connection,
  consumer: ConsumerDefinition,
  ms = 5_000,
): Promise<BreakerStatus> {
  const stored = await breakersOn(connection, consumer).read(breakerSubject(consumer), ms);
  return statusOf(connection, consumer, stored?.value ?? closed, ms);
}

/** Opens it by hand for `forMs`: no invocation starts a handler of the consumer until then, and one message is tried after it. */
export async function tripBreaker(
  connection: Connection,
  consumer: ConsumerDefinition,
  forMs: number,
  ms = 5_000,
): Promise<BreakerStatus> {
  const at = { by: "hand", now: Date.now() };
  const state = opened("opened by hand", forMs, at);
  const found = await replace(connection, consumer, state, ms);
  await resumeConsumer(connection, consumer, pauseOf(found), ms); // the new time may be shorter
  await pauseConsumer(connection, consumer, at.now + forMs, ms);
  return statusOf(connection, consumer, state, ms);
}

/** Closes it by hand, whatever has failed. What someone else has paused stays paused. */
export async function resetBreaker(
  connection: Connection,
  consumer: ConsumerDefinition,
  ms = 5_000,
): Promise<BreakerStatus> {
  const found = await replace(connection, consumer, closed, ms);
  await resumeConsumer(connection, consumer, pauseOf(found), ms);
  return statusOf(connection, consumer, closed, ms);
}

/** Answers what it was. */
async function replace(
  connection: Connection,
  consumer: ConsumerDefinition,
  state: BreakerState,
  ms: number,
): Promise<BreakerState> {
  const records = breakersOn(connection, consumer);
  const subject = breakerSubject(consumer);
  for (let tries = 20; ; tries--) {
    try {
      const found = await records.read(subject, ms);
      await records.write(subject, found?.revision ?? 0, state, ms);
      return found?.value ?? closed;
    } catch (error) {
      if (!isConflict(error) || tries === 0) throw error; // an invocation counts meanwhile
    }
  }
}

function breakersOn(connection: Connection, { name, stream, breaker }: ConsumerDefinition) {
  if (!breaker)
    throw new SortieError(
      "invalid-option",
      `Consumer "${name}" of stream "${stream.name}" is defined without a breaker`,
    );
  return recordsIn<BreakerState>(connection, breakersStream, "the state of a circuit breaker");
}

async function statusOf(
  connection: Connection,
  consumer: ConsumerDefinition,
  state: BreakerState,
  ms: number,
): Promise<BreakerStatus> {
  if (state.state === "closed") {
    const until = await pausedUntil(connection, consumer, ms);
    return { state: "closed", ...(until > 0 && { pausedUntil: new Date(until) }) };
  }
  const times = { since: new Date(state.since), until: new Date(state.until) };
  return state.state === "open" ? { state: "open", ...times, reason: state.reason } : { state: "half-open", ...times };
}
