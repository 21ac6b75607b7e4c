import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { noAttempts } from "./ledger.ts";
import { resolveExhausted, resolveParked } from "./source.ts";
import { type Beginning, decideStart } from "./start.ts";

/**
 * Finds out what a delivery stands for that may not be its message's first, and how it goes on.
 * @throws what asking the server throws.
 */
export async function recall(
  { consumer }: Binding,
  one: Held,
  { connection, clock, ledger }: Circumstances,
): Promise<Beginning | { readonly kind: "not-due"; readonly inMs: number }> {
  const { now } = clock;
  const ms = Math.min(5_000, clock.budget.publishBy - now());
  if (one.source === "parked") {
    const { delivery, notBefore, originAck } = resolveParked(consumer, one.delivery);
    if (notBefore > now()) return { kind: "not-due", inMs: notBefore - now() };
    Object.assign(one, { delivery, originAck });
  } else if (one.source === "exhausted") {
    const delivery = await resolveExhausted(connection, consumer, one.delivery, ms);
    if (!delivery) return { kind: "leave", outcome: { settlement: { kind: "ack" }, attempts: noAttempts.attempts } };
    one.delivery = delivery;
  }
  one.entry = await ledger.read(one.delivery, ms);
  const { retry, ackWaitMs } = consumer;
  const isParkedCopy = one.source === "parked";
  return decideStart(one.entry, { most: retry.attempts, isParkedCopy, ackWaitMs, now: now() });
}
