import { keySubject, keysStream } from "../define/own.ts";
import { textOf } from "../errors.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { failedBefore, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keyOf, messageOf } from "./key.ts";
import type { Attempts } from "./ledger.ts";
import type { Settlement } from "./settlement.ts";

/** Sees to it that of messages with the same key one is handled. */
export interface Claims {
  /**
   * Claims a message's key for it, in one round trip where nobody has had it. Answers how the message is to leave where it
   * is not to be handled, as it was already or is being handled elsewhere.
   * @throws what `Records` throws.
   */
  claim(one: Held, attempts: Attempts): Promise<Outcome | undefined>;
  /** Writes down what became of a claim. Answers what went wrong, which costs the message nothing. */
  end(one: Held, settlement: Settlement): Promise<string | undefined>;
}

/** What is kept of a key: that it was handled, or which message is being handled, and until when that may go on. */
type Key = { readonly handled: true } | { readonly by: string; readonly until: number };

/** A key that is being handled, by what is known here. */
interface Claimed {
  readonly by: string;
  readonly until: number;
  /** Until when that is believed without asking: another invocation's claim may have ended long before its time. */
  believedUntil: number;
  /** How often a message was told to wait for it. */
  waiting: number;
}

/** How long a message waits for how its key's claim ends, the more the more of them wait: they would ask without a rest. */
const waitMs = { first: 250, more: 10, longest: 10_000 };
const skewMs = 2_000; // what hosts' clocks may be apart
const tries = 5;

/** Of a consumer with `idempotency`; undefined for the others. */
export function openClaims(binding: Binding, shared: Circumstances): Claims | undefined {
  const { consumer } = binding;
  const { connection, clock } = shared;
  const { idempotency } = consumer;
  if (!idempotency) return undefined;
  const { ttlMs, key = ({ id }) => id } = idempotency;
  const { now } = clock;
  const records = recordsIn<Key>(connection, keysStream, "the keys that were handled");
  const leftMs = () => Math.max(1, clock.budget.publishBy - now());
  const claimed = new Map<string, Claimed>(); // by their subject
  const asking = new Map<string, Promise<unknown>>(); // of those that came in one piece one asks

  async function claim(one: Held, attempts: Attempts): Promise<Outcome | undefined> {
    let subject: string;
    try {
      const message = await messageOf(one, consumer, clock);
      subject = keySubject(consumer, await keyOf(message, consumer, "idempotency", key));
    } catch (error) {
      return failedBefore(binding, one.delivery, attempts, shared, error);
    }
    const by = `${one.delivery.sequence}.${one.delivery.storedNs}`;
    const others = asking.get(subject);
    if (others !== undefined) await others.catch(() => {});
    const known = claimed.get(subject);
    if (known && known.by !== by && now() < known.believedUntil) return waits(known, attempts);
    const agreeing = agree(one, subject, by);
    asking.set(subject, agreeing);
    const found = await agreeing.finally(() => asking.get(subject) === agreeing && asking.delete(subject));
    if (found === "handled") return { settlement: { kind: "ack", duplicate: true }, attempts };
    return found && waits(found, attempts);
  }

  /** Claims it, or answers what stands against that. */
  async function agree(one: Held, subject: string, by: string): Promise<"handled" | Claimed | undefined> {
    for (let tried = 1, revision = 0; ; tried++) {
      const until = Math.round(clock.budget.settleBy + skewMs);
      try {
        one.claim = { subject, by, revision: await records.write(subject, revision, { by, until }, leftMs()) };
        claimed.set(subject, { by, until, believedUntil: until, waiting: 0 });
        return undefined;
      } catch (error) {
        if (!isConflict(error) || tried >= tries) throw error;
      }
      const found = await records.read(subject, leftMs());
      revision = found?.revision ?? 0;
      if (!found) continue; // it was given up meanwhile
      const { value, at } = found;
      if ("handled" in value) {
        if (now() < at + ttlMs) return "handled";
      } else if (value.by !== by && now() < value.until) {
        const known = claimed.get(subject);
        const other = { ...value, believedUntil: 0, waiting: known?.by === value.by ? known.waiting : 0 };
        other.believedUntil = now() + patienceMs(other);
        claimed.set(subject, other);
        return other;
      }
    }
  }

  function patienceMs({ until, waiting }: Claimed): number {
    return Math.min(Math.max(1, until - now()), waitMs.first + waitMs.more * waiting, waitMs.longest);
  }

  function waits(other: Claimed, attempts: Attempts): Outcome {
    const delayMs = patienceMs(other);
    other.waiting += 1;
    return { settlement: { kind: "return", delayMs }, attempts };
  }

  /** Whoever has claimed the key meanwhile, as where this message's lease was lost: it was handled. */
  async function handled(subject: string, revision: number): Promise<void> {
    for (let tried = 1; ; tried++) {
      try {
        await records.write(subject, revision, { handled: true }, leftMs());
        return;
      } catch (error) {
        if (!isConflict(error) || tried >= tries) throw error;
      }
      const found = await records.read(subject, leftMs());
      if (found && "handled" in found.value) return;
      revision = found?.revision ?? 0;
    }
  }

  return {
    claim,
    async end(one, settlement) {
      if (!one.claim) return undefined;
      const { subject, by, revision } = one.claim;
      try {
        if (settlement.kind === "ack") await handled(subject, revision);
        else await records.remove(revision, leftMs());
        return undefined;
      } catch (error) {
        return textOf(error);
      } finally {
        if (claimed.get(subject)?.by === by) claimed.delete(subject);
      }
    },
  };
}
