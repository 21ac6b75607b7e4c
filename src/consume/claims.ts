import { keySubject, keysStream } from "../define/own.ts";
import { textOf } from "../errors.ts";
import { isConflict, recordsIn } from "../nats/records.ts";
import { failedBefore, type Outcome } from "./attempt.ts";
import type { Circumstances } from "./circumstances.ts";
import type { Binding } from "./handler.ts";
import type { Held } from "./held.ts";
import { keyFor } from "./key.ts";
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

const waitMs = 2_000;
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

  async function claim(one: Held, attempts: Attempts): Promise<Outcome | undefined> {
    let subject: string;
    try {
      subject = keySubject(consumer, await keyFor(consumer, "idempotency", key, one.delivery, clock));
    } catch (error) {
      return failedBefore(binding, one.delivery, attempts, shared, error);
    }
    const by = `${one.delivery.sequence}.${one.delivery.storedNs}`;
    for (let tried = 1, revision = 0; ; tried++) {
      try {
        const until = Math.round(clock.budget.settleBy + skewMs);
        one.claim = { subject, revision: await records.write(subject, revision, { by, until }, leftMs()) };
        return undefined;
      } catch (error) {
        if (!isConflict(error) || tried >= tries) throw error;
      }
      const found = await records.read(subject, leftMs());
      revision = found?.revision ?? 0;
      if (!found) continue; // it was given up meanwhile
      const { value, at } = found;
      if ("handled" in value) {
        if (now() < at + ttlMs) return { settlement: { kind: "ack", duplicate: true }, attempts };
      } else if (value.by !== by && now() < value.until) {
        return { settlement: { kind: "return", delayMs: Math.min(value.until - now(), waitMs) }, attempts };
      }
    }
  }

  return {
    claim,
    async end(one, settlement) {
      const claimed = one.claim;
      if (!claimed) return undefined;
      const { subject, revision } = claimed;
      try {
        if (settlement.kind === "ack") await records.write(subject, revision, { handled: true }, leftMs());
        else await records.remove(revision, leftMs());
        return undefined;
      } catch (error) {
        return isConflict(error) ? undefined : textOf(error); // someone else took over, and says how it ends
      }
    },
  };
}
