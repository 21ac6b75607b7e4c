import type { DeadLetterReason, Start } from "../dead-letter/story.ts";
import { attemptsStream, attemptsSubject } from "../define/own.ts";
import type { Connection } from "../nats/connection.ts";
import type { Delivery } from "../nats/delivery.ts";
import { recordsIn } from "../nats/records.ts";

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
  /** Its last start failed in a batch, of which nobody can say who broke it: the next one has no company. */
  readonly apart?: true;
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
 * @throws SortieError `stream-missing`, `stream-refused`, `record-conflict`, `timed-out` or `connection-lost`.
 */
export interface Ledger {
  read(delivery: Delivery, ms: number): Promise<Entry>;
  /** Replaces what `entry` was read as. Throws `record-conflict` where another invocation has written meanwhile. */
  write(delivery: Delivery, entry: Entry, attempts: Attempts, ms: number): Promise<Entry>;
  forget(entry: Entry, ms: number): Promise<void>;
}

/** Of a message for which nothing is written down. */
export const noAttempts: Entry = { attempts: { started: 0, starts: [] }, revision: 0 };

const keptStarts = 20;

export function openLedger(connection: Connection): Ledger {
  const records = recordsIn<Attempts>(connection, attemptsStream, "the attempts at a message");
  return {
    async read(delivery, ms) {
      const stored = await records.read(subjectOf(delivery), ms);
      return stored ? { attempts: stored.value, revision: stored.revision } : noAttempts;
    },
    async write(delivery, entry, attempts, ms) {
      const kept = { ...attempts, starts: attempts.starts.slice(-keptStarts) };
      return { attempts, revision: await records.write(subjectOf(delivery), entry.revision, kept, ms) };
    },
    forget: ({ revision }, ms) => records.remove(revision, ms),
  };
}

/**
 * What another invocation has written meanwhile, with what came of ours. Those of our starts that were `announced`, and of
 * which it is not written down how they ended, are over now: they are no longer open, and where the other one took one for a
 * death, what it really came to stands in its place.
 */
export function merged(
  other: Attempts,
  { starts: mine, started, verdict, parkedUntil, apart }: Attempts,
  { before, announced }: { readonly before: Attempts; readonly announced: readonly Start[] },
): Attempts {
  const isOurs = ({ at, host }: Start) => announced.some((start) => at === start.at && host === start.host);
  const isTakenForDead = (start: Start) => isOurs(start) && start.error === undefined;
  const { open, ...kept } = other;
  const ended = started - before.started;
  const takenForDead = kept.starts.filter(isTakenForDead).length;
  return {
    ...kept,
    ...(open && !isOurs(open) && { open }),
    ...(verdict && { verdict }),
    ...(apart && { apart }),
    ...(parkedUntil !== undefined && { parkedUntil }),
    started: kept.started - takenForDead + ended,
    starts: [...kept.starts.filter((start) => !isTakenForDead(start)), ...(ended > 0 ? mine.slice(-ended) : [])],
  };
}

function subjectOf({ stream, consumer, sequence, storedNs }: Delivery): string {
  return attemptsSubject(stream, consumer, sequence, storedNs);
}
