import type { ConsumerDefinition } from "../define/consumer.ts";
import { parkedStream } from "../define/own.ts";
import { consumerInfo } from "../nats/consumer-info.ts";
import { point } from "../nats/within.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { type Asked, type PutOff, planRemainder, type Remainder } from "./remainder.ts";
import type { Settled } from "./settle.ts";
import { resolveParked, type Source } from "./source.ts";

/** Keeps what is known of what an invocation leaves of one consumer. */
export interface Left {
  /** Takes note of a message that did not simply succeed. */
  settled(one: Held, settled: Settled): void;
  /** Takes note of a settlement without the server's word: the message comes again after the ack-wait. */
  unconfirmed(one: Held): void;
  /**
   * Takes note of how many messages wait on a source, as the server said last; undefined where it has not. `isServed` is
   * whether it gave all that was asked for until the end: there may be more, also of what was delivered before.
   */
  waiting(kind: Source["kind"], messages: number | undefined, isServed: boolean): void;
  /**
   * What is left, with the server's word on its consumer where it was asked while `unsettled` messages were in hand; nothing
   * to find where what held this invocation back would hold the next one back.
   */
  sum(isHeld: boolean, asked?: Asked): Remainder;
}

export function openLeft(consumer: ConsumerDefinition, now: () => number): Left {
  const putOff = new Map<Held["key"], PutOff>(); // by the message, wherever its delivery came from
  const waiting: Partial<Record<Source["kind"], number | undefined>> = {};
  let servedAtTheEnd = false;

  function keyOf({ key, delivery, source }: Held): Held["key"] {
    if (delivery.stream === consumer.stream.name) return delivery.sequence;
    const isParked = source === "parked" && delivery.stream === parkedStream;
    return isParked ? resolveParked(consumer, delivery).delivery.sequence : key;
  }

  return {
    settled(one, { settlement, parked = false }) {
      if (one.lost || settlement.kind === "ack" || settlement.kind === "dead-letter") {
        putOff.delete(keyOf(one));
        return;
      }
      const outstanding = one.source === "own" && !parked;
      putOff.set(keyOf(one), { dueAt: now() + (settlement.delayMs ?? 0), outstanding });
    },
    unconfirmed(one) {
      putOff.set(keyOf(one), { dueAt: now() + consumer.ackWaitMs, outstanding: one.source === "own" });
    },
    waiting(kind, messages, isServed) {
      waiting[kind] = messages;
      servedAtTheEnd ||= isServed;
    },
    sum: (isHeld, asked) => {
      const { maxAckPending } = consumer;
      const known = { isHeld, waiting, isServed: servedAtTheEnd, putOff: [...putOff.values()] };
      return planRemainder({ ...known, asked, maxAckPending, now: now() });
    },
  };
}

/**
 * Asks the server what is left of a consumer when the last of what is in hand is being settled: in one flight with that.
 * Undefined where it does not say.
 */
export async function askLeft(
  { consumer: { name, stream } }: Binding,
  hand: { readonly size: number; readonly messages: number; until(condition: () => boolean): Promise<void> },
  { connection, clock }: Pick<Circumstances, "connection" | "clock">,
): Promise<Asked | undefined> {
  await point(
    "waiting for the last to be settled",
    hand.until(() => hand.messages === 0),
  );
  const unsettled = hand.size;
  const ms = Math.min(5_000, clock.budget.settleBy - clock.now());
  const asked = consumerInfo(connection, { stream: stream.name, consumer: name }, ms);
  return asked.then(
    (info) => {
      clock.told(info.ts);
      return info.error ? undefined : { info, unsettled };
    },
    () => undefined,
  );
}
