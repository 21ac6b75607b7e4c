import type { Connection } from "../nats/connection.ts";
import { untilLed } from "../nats/leader.ts";
import { within } from "../nats/within.ts";

export const ACK = new TextEncoder().encode("+ACK");
export const TERM = new TextEncoder().encode("+TERM");

/** Sends settlements and waits for the server's word on them. */
export interface Confirmation {
  /** Waits until `by` at most. Throws `timed-out` or what the client throws. */
  settle(ackSubject: string, settlement: Uint8Array | string, by: number): Promise<void>;
  /** Sends what has gathered: nothing is going on any more that more could come of. */
  hurry(): void;
}

/** How long to wait for a word of the server that is lost, as when a consumer's leader changes: functions are billed for it. */
const patienceMs = 5_000;

/** Each settlement is answered by itself. */
export function confirmEach(connection: Connection, now: () => number): Confirmation {
  return {
    settle: (ackSubject, settlement, by) =>
      untilLed({ ms: patience(by - now()) }, (ms) => answered(connection, ackSubject, settlement, ms)),
    hurry() {},
  };
}

/** Settlements that leave together. */
interface Group {
  readonly settlements: { readonly ackSubject: string; readonly settlement: Uint8Array | string }[];
  by: number;
  readonly confirmed: Promise<void>;
  readonly told: () => void;
  readonly failed: (error: unknown) => void;
}

/**
 * Settlements leave together and the server's answer to the last one confirms them all: a consumer's leader handles what
 * comes over one connection in order, in a cluster as well. While an answer is awaited the next ones gather, as long as
 * something is going on (`busy`) that more may come of. Those that leave together share one promise.
 */
export function confirmTogether(connection: Connection, now: () => number, busy: () => boolean): Confirmation {
  let gathering: Group | undefined;
  let awaited = 0;

  function send(): void {
    if (!gathering || (awaited > 0 && busy())) return;
    const group = gathering;
    gathering = undefined;
    void carryOut(group);
  }

  async function carryOut({ settlements, by, told, failed }: Group): Promise<void> {
    awaited += 1;
    try {
      // an acknowledgement is what a cluster agrees on before it answers: one of them goes last
      const lastAt = settlements.findLastIndex(({ settlement }) => settlement === ACK || settlement === TERM);
      const [last] = settlements.splice(lastAt, 1); // the very last one where none is
      await untilLed({ ms: patience(by - now()) }, async (ms) => {
        for (const { ackSubject, settlement } of settlements) connection.publish(ackSubject, settlement);
        if (last) await answered(connection, last.ackSubject, last.settlement, ms);
      });
      told();
    } catch (error) {
      failed(error);
    } finally {
      awaited -= 1;
      send();
    }
  }

  return {
    settle(ackSubject, settlement, by) {
      if (!gathering) {
        const { promise, resolve, reject } = Promise.withResolvers<void>();
        gathering = { settlements: [], by, confirmed: promise, told: resolve, failed: reject };
        queueMicrotask(send);
      }
      gathering.settlements.push({ ackSubject, settlement });
      gathering.by = Math.min(gathering.by, by);
      return gathering.confirmed;
    },
    hurry: send,
  };
}

function patience(ms: number): number {
  return Math.max(1, Math.min(patienceMs, ms));
}

async function answered(connection: Connection, ackSubject: string, settlement: Uint8Array | string, ms: number) {
  const timeout = Math.max(1, ms);
  await within(timeout, "confirming a settlement", connection.request(ackSubject, settlement, { timeout }));
}
