import { storeDeadLetter } from "../dead-letter/store.ts";
import type { DeadLetterReason } from "../dead-letter/story.ts";
import { parkFromMs, parks } from "../define/own.ts";
import { backoffMs } from "../define/retry.ts";
import { SortieError, textOf } from "../errors.ts";
import { isDenied } from "../nats/denied.ts";
import { isConflict } from "../nats/records.ts";
import { within } from "../nats/within.ts";
import type { Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import { ACK, type Confirmation, TERM } from "./confirm.ts";
import type { Binding } from "./handler.ts";
import { attemptsOf, type Held } from "./held.ts";
import { type Attempts, merged, noAttempts } from "./ledger.ts";
import { park } from "./park.ts";
import { asideMs } from "./start.ts";

/** How long to wait for one of the steps before the last, so that there is time for that one. */
const stepMs = 5_000;

const originMs = 1_000;

/** How long a dead letter may wait that may be stored already: its id has to be remembered when it is stored again. */
const sureAgainMs = 10_000;

/** What is handed back for so long waits elsewhere: there may be many of a busy key, which must not fill the consumer. */
const parkReturnFromMs = 1_000;

/** How a delivery really left. */
export interface Settled extends Outcome {
  /** What could not be done beside it; the message lost nothing by it. */
  readonly trouble?: string;
  /** Of a retry, whether it waits outside of its consumer. */
  readonly parked?: boolean;
}

/**
 * Carries out an outcome and waits for the server's word on it. What has failed is written down before the delivery is
 * handed back; a dead letter is stored before its delivery is terminated, which deletes the message from a work queue, and
 * where storing it is refused the message is retried.
 * @throws what `Confirmation` throws: the message comes again after its ack-wait.
 */
export async function settle(
  { consumer }: Binding,
  held: Held,
  outcome: Outcome,
  { connection, clock, ledger, host }: Circumstances,
  { settle: confirm }: Confirmation,
): Promise<Settled> {
  const { settlement } = outcome;
  if (held.lost && settlement.kind !== "ack") {
    // someone else has it now: what was tried here counts, and nothing more
    const tells = settlement.kind !== "return" || held.announced !== undefined;
    return tells ? { ...outcome, ...(await writtenDown(outcome.attempts)) } : outcome;
  }
  switch (settlement.kind) {
    case "ack":
      return { ...outcome, ...(await leaveForGood(ACK)) };
    case "return":
      return handBack(settlement.delayMs ?? 0);
    case "retry":
      return retry(outcome, settlement.delayMs);
    case "dead-letter":
      return deadLetter(settlement.reason);
  }

  function left(): number {
    return Math.max(1, Math.min(stepMs, clock.budget.settleBy - clock.now()));
  }

  /** It is said that it was not started, where the next delivery would be taken for a suspect. */
  async function handBack(delayMs: number): Promise<Settled> {
    if (isParked(delayMs, parkReturnFromMs)) return retry(outcome, delayMs, parkReturnFromMs);
    const first = held.source === "own" && !held.delivery.again;
    const [trouble] = await Promise.all([
      first || held.announced ? writtenDown(outcome.attempts) : undefined,
      confirm(held.ackSubject, nak(delayMs), clock.budget.settleBy),
    ]);
    return { ...outcome, ...trouble };
  }

  function isParked(delayMs: number, fromMs: number): boolean {
    return held.source === "own" && parks(consumer) && delayMs >= fromMs;
  }

  async function retry(decided: Outcome, delayMs: number, fromMs = parkFromMs): Promise<Settled> {
    const { parkedUntil, ...attempts } = decided.attempts;
    let unparked: string | undefined;
    const parked = (held.source === "own" && parkedUntil !== undefined) || isParked(delayMs, fromMs);
    if (parked) {
      const until = parkedUntil ?? Math.round(clock.now() + delayMs);
      try {
        // what is written down first tells a delivery that comes again that its copy waits
        const isAgain = parkedUntil !== undefined;
        const trouble = await writtenDown({ ...attempts, parkedUntil: until }, isAgain ? "throw" : "merge");
        if (trouble) throw new SortieError("stream-refused", trouble.trouble);
        await park(connection, consumer, held.delivery, until, left());
        await confirm(held.ackSubject, ACK, clock.budget.settleBy);
        return { ...decided, parked: true };
      } catch (error) {
        if (isConflict(error)) {
          // its copy was started meanwhile: parked again, it could be one that has been handled already
          await confirm(held.ackSubject, nak(asideMs), clock.budget.settleBy);
          return { settlement: { kind: "return", delayMs: asideMs }, attempts: decided.attempts };
        }
        if (!(error instanceof SortieError) || error.code === "timed-out") throw error;
        unparked = textOf(error); // it keeps its place in the consumer
      }
    }
    if (held.originAck) connection.publish(held.originAck, ACK); // what it was lost for may be over
    const trouble = await writtenDown(held.source === "parked" ? decided.attempts : attempts);
    await confirm(held.ackSubject, nak(delayMs), clock.budget.settleBy);
    return { ...decided, ...(unparked && { trouble: unparked }), ...trouble };
  }

  async function deadLetter(reason: DeadLetterReason): Promise<Settled> {
    const { error, attempts } = outcome;
    const story = { reason, error, attempts: attempts.started, starts: attempts.starts, host, now: clock.now() };
    try {
      await storeDeadLetter(connection, held.delivery, consumer, story, left() / 2);
    } catch (refusal) {
      const unsure = refusal instanceof SortieError && ["timed-out", "connection-lost"].includes(refusal.code);
      const backoff = backoffMs(consumer.retry.backoff, Math.max(1, attempts.started), Math.random());
      const delayMs = unsure ? Math.min(backoff, sureAgainMs) : backoff;
      const verdict = { reason, error: textOf(error) };
      const again: Outcome = {
        settlement: { kind: "retry", delayMs },
        error: refusal,
        attempts: { ...attempts, verdict },
      };
      return { trouble: textOf(refusal), ...(await retry(again, delayMs)) };
    }
    return { ...outcome, ...(await leaveForGood(TERM)) };
  }

  /** The delivery's last settlement, with which all that is kept of the message beside it goes as well. */
  async function leaveForGood(settlement: Uint8Array): Promise<{ trouble: string } | undefined> {
    if (held.source === "exhausted" && consumer.stream.retention === "workqueue") await remove();
    if (held.originAck) await originAcknowledged(held.originAck);
    try {
      await confirm(held.ackSubject, settlement, clock.budget.settleBy);
    } catch (error) {
      if (held.announced) await writtenDown(outcome.attempts); // or it would be taken for one that its function died of
      throw error;
    }
    if (!held.entry || held.entry.revision === 0) return undefined;
    return ledger.forget(held.entry, left()).then(
      () => undefined,
      (error: unknown) => (isDenied(error) ? { trouble: textOf(error) } : undefined), // else its maxAge does it
    );
  }

  /** Of a parked copy: where its origin's acknowledgement was lost, that one would come again, and know nothing of the copy. */
  async function originAcknowledged(ackSubject: string): Promise<void> {
    const asked = connection.request(ackSubject, ACK, { timeout: Math.min(originMs, left()) });
    await within(Math.min(originMs, left()), "acknowledging what a parked message is a copy of", asked).catch(() => {});
  }

  async function remove(): Promise<void> {
    const subject = `$JS.API.STREAM.MSG.DELETE.${consumer.stream.name}`;
    const payload = JSON.stringify({ seq: held.delivery.sequence, no_erase: true });
    await within(left(), "removing a message", connection.request(subject, payload, { timeout: left() }));
  }

  async function writtenDown(
    attempts: Attempts,
    onConflict: "merge" | "throw" = "merge",
  ): Promise<{ trouble: string } | undefined> {
    try {
      held.entry = await ledger.write(held.delivery, held.entry ?? noAttempts, attempts, left());
      return undefined;
    } catch (error) {
      if (!isConflict(error)) return { trouble: textOf(error) };
      if (onConflict === "throw") throw error;
    }
    try {
      const other = await ledger.read(held.delivery, left());
      const before = attemptsOf(held);
      const both = merged(other.attempts, attempts, { before, announced: held.opened ?? [] });
      held.entry = await ledger.write(held.delivery, other, both, left());
      return undefined;
    } catch (error) {
      return { trouble: textOf(error) };
    }
  }
}

/** Handed back; plain, it comes again at once (NATS ADR-15). */
function nak(delayMs: number): string {
  return delayMs > 0 ? `-NAK ${JSON.stringify({ delay: Math.round(delayMs) * 1_000_000 })}` : "-NAK";
}
