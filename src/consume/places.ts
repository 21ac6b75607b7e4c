import { longestInvocationMs, placesStream, placesSubject } from "../define/own.ts";
import type { Connection } from "../nats/connection.ts";
import { isConflict, recordsIn } from "../nats/records.ts";

/** Leave for one invocation to be connected: plain data, to be handed to whoever starts it. */
export interface Place {
  readonly id: string;
  /** When its invocation must be over, in epoch milliseconds of the server's clock. */
  readonly until: number;
}

/** A place that is taken; `ended` where its invocation has ended, and only its connection may still be there. */
export interface Lease extends Place {
  readonly ended?: boolean;
}

const skewMs = 2_000; // what clocks may be apart, of servers, or of hosts that know no other (nats-server before 2.10)
const longestLeaseMs = longestInvocationMs + 10_000; // what an invocation may take to start
const closeMs = 1_000; // for a connection to be closed

/** Those that hold now: who crashed holds its place until its time is over. What is later is by a clock that was wrong. */
function holding(leases: readonly Lease[], now: number): Lease[] {
  return leases.filter(({ until }) => now < until + skewMs && until <= now + longestLeaseMs + skewMs);
}

/** A place whose invocation is about to close its connection. */
export function endingAt({ id }: Place, now: number): Lease {
  return { id, until: now + closeMs, ended: true };
}

/**
 * Agrees with all invocations of the account on who has a place, in one record that is read and replaced, twice a round
 * trip, and again where another one was faster. `decide` answers who has one from now on; undefined for no change.
 * @throws what `Records` throws.
 */
export async function changePlaces(
  connection: Connection,
  { now, serverNow, by }: { now(): number; serverNow(): number; by: number },
  decide: (held: readonly Lease[]) => readonly Lease[] | undefined,
): Promise<void> {
  const records = recordsIn<readonly Lease[]>(connection, placesStream, "the places of invocations");
  const leftMs = () => by - now();
  for (;;) {
    const stored = await records.read(placesSubject, leftMs());
    const leases = decide(holding(stored?.value ?? [], serverNow()));
    if (!leases) return;
    try {
      await records.write(placesSubject, stored?.revision ?? 0, leases, leftMs());
      return;
    } catch (error) {
      if (!isConflict(error) || leftMs() <= 0) throw error;
    }
  }
}
