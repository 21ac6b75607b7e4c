import { headers } from "@nats-io/nats-core";
import type { DeadLetterReason, Start } from "../dead-letter/story.ts";
import { attemptsStream, attemptsSubject } from "../define/own.ts";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { isCaptured, untilLed } from "../nats/leader.ts";
import { within } from "../nats/within.ts";

/** What is known of the attempts at a message. */
export interface Attempts {
  /** How often a handler was started for it, as far as that is certain: the start failed, or its function died of it alone. */
  readonly started: number;
  /** These starts, or the latest of them. */
  readonly starts: readonly Start[];
  /** A start that is still going on, or whose function died; `alone` where no other handler ran beside it. */
  readonly open?: Start & { readonly alone: boolean };
  /** It is to be dead-lettered, which was refused so far. */
  readonly verdict?: { readonly reason: DeadLetterReason; readonly error: string };
  /** Its retry is parked until then, in epoch milliseconds. */
  readonly parkedUntil?: number;
}

/** What is known, as of a revision of the ledger; revision 0 for nothing. */
export interface Entry {
  readonly attempts: Attempts;
  readonly revision: number;
}

/**
 * The attempts at messages that did not simply succeed, in a stream: one small record for each, written when a delivery is
 * handed back, after a start that failed, and before a start that is not the first. It makes attempts exact where the
 * server only counts deliveries. Every call is one round trip.
 * @throws SortieError `stream-missing`, `stream-refused`, `ledger-conflict`, `timed-out` or `connection-lost`.
 */
export interface Ledger {
  read(delivery: Delivery, ms: number): Promise<Entry>;
  /** Replaces what `entry` was read as. Throws `ledger-conflict` where another invocation has written meanwhile. */
  write(delivery: Delivery, entry: Entry, attempts: Attempts, ms: number): Promise<Entry>;
  forget(entry: Entry, ms: number): Promise<void>;
}

/** Of a message for which nothing is written down. */
export const noAttempts: Entry = { attempts: { started: 0, starts: [] }, revision: 0 };

const keptStarts = 20;

interface Answer {
  error?: { code: number; err_code?: number; description?: string };
  seq?: number;
  message?: { seq: number; data?: string };
}

export function openLedger(connection: Connection): Ledger {
  async function ask(what: string, subject: string, payload: string, ms: number, hdrs?: ReturnType<typeof headers>) {
    const name = `${what} the attempts at a message`;
    const askOnce = (leftMs: number) => {
      const options = { timeout: Math.max(1, leftMs), ...(hdrs && { headers: hdrs }) };
      return within(leftMs, name, connection.request(subject, payload, options));
    };
    let captured: boolean | undefined;
    try {
      const isThere = async (leftMs: number) => {
        captured = await isCaptured(connection, attemptsSubject("*", "*", "*", "*"), leftMs);
        return captured;
      };
      const repeatMs = hdrs ? undefined : 1_000; // what is written twice conflicts with itself
      return (await untilLed({ ms, repeatMs, isThere }, askOnce)).json<Answer>();
    } catch (error) {
      if (error instanceof SortieError) throw error;
      if (captured === false) throw missing(); // what no stream takes is answered by nobody
      throw new SortieError("connection-lost", `${name}: ${textOf(error)}`, { cause: error });
    }
  }

  return {
    async read(delivery, ms) {
      const payload = JSON.stringify({ last_by_subj: subjectOf(delivery) });
      const { error, message } = await ask("reading", `$JS.API.STREAM.MSG.GET.${attemptsStream}`, payload, ms);
      if (message) return { attempts: JSON.parse(atob(message.data ?? "")) as Attempts, revision: message.seq };
      if (error?.err_code === 10037) return noAttempts;
      throw error?.err_code === 10059 ? missing() : refused(error?.description);
    },
    async write(delivery, entry, attempts, ms) {
      const hdrs = headers();
      hdrs.set("Nats-Expected-Last-Subject-Sequence", `${entry.revision}`);
      hdrs.set("Nats-Expected-Stream", attemptsStream);
      const kept = JSON.stringify({ ...attempts, starts: attempts.starts.slice(-keptStarts) }, ascii);
      const { error, seq } = await ask("writing", subjectOf(delivery), kept, ms, hdrs);
      if (seq) return { attempts, revision: seq };
      if (error?.err_code !== 10071) throw refused(error?.description);
      throw new SortieError("ledger-conflict", "Another invocation has written down an attempt at the same message");
    },
    async forget({ revision }, ms) {
      const payload = JSON.stringify({ seq: revision, no_erase: true });
      await ask("forgetting", `$JS.API.STREAM.MSG.DELETE.${attemptsStream}`, payload, ms);
    },
  };
}

function subjectOf({ stream, consumer, sequence, storedNs }: Delivery): string {
  return attemptsSubject(stream, consumer, sequence, storedNs);
}

/** What `atob` reads back without more ado, in little space. */
function ascii(_key: string, value: unknown): unknown {
  return typeof value === "string" ? value.replace(/[^\x20-\x7e]/g, "?").slice(0, 300) : value;
}

function missing(): SortieError {
  return new SortieError(
    "stream-missing",
    `Stream "${attemptsStream}", which counts the attempts at messages that failed, does not exist on the server. Create it: npx sortie apply <the module with your app>`,
  );
}

function refused(description = "no reason given"): SortieError {
  return new SortieError("stream-refused", `Stream "${attemptsStream}" refused to count an attempt: ${description}`);
}
