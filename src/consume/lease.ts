import type { Circumstances } from "./circumstances.ts";
import type { Held } from "./held.ts";
import type { Tally } from "./tally.ts";

/** Keeps the server told that deliveries are being worked on, and notices where it may have given up waiting. */
export interface Leases {
  /** Notes, and tells, whether a delivery's lease has lapsed: the function was frozen, or busy with itself, for too long. */
  check(one: Held, at?: number): void;
  /** Tells the server of those of which it has not heard for an eighth of the ack-wait. */
  keep(): void;
  /** A newer delivery of the same message has come to us. */
  renew(one: Held, ackSubject: string): void;
  end(): void;
}

/** Handlers that use the processor hold up the heartbeat, which comes every half of the ack-wait: it is made up for between them. */
export const keptParts = 8;

export function keepLeases(
  held: ReadonlyMap<unknown, Held>,
  ackWaitMs: number,
  { connection, clock: { now } }: Circumstances,
  tally: Tally,
): Leases {
  const heartbeat = setInterval(() => tell(0), ackWaitMs / 2);

  function tell(unheardMs: number): void {
    for (const one of held.values()) {
      if (now() - one.heardAt < unheardMs) continue;
      check(one);
      if (one.lost) continue;
      try {
        connection.publish(one.ackSubject, "+WPI");
        one.heardAt = now();
      } catch {
        return; // the connection is closed, which the settlements will tell
      }
    }
  }

  function check(one: Held, at = now()): void {
    if (one.lost || at - one.heardAt <= ackWaitMs) return;
    one.lost = true;
    tally.leaseLost(one);
  }

  return {
    check,
    keep: () => tell(ackWaitMs / keptParts),
    renew(one, ackSubject) {
      if (!one.lost) tally.leaseLost(one);
      Object.assign(one, { ackSubject, heardAt: now(), lost: false });
    },
    end: () => clearInterval(heartbeat),
  };
}
