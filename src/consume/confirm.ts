import type { Connection } from "../nats/connection.ts";
import { consumerInfo } from "../nats/consumer-info.ts";
import { consumerOf } from "../nats/delivery.ts";
import { untilLed } from "../nats/leader.ts";
import { within } from "../nats/within.ts";
import type { Clock } from "./clock.ts";

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
export function confirmEach(connection: Connection, clock: Clock): Confirmation {
  return {
    settle: (ackSubject, settlement, by) =>
      untilLed(asking(connection, ackSubject, by - clock.now()), (ms) =>
        answered(connection, clock, ackSubject, settlement, ms),
      ),
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
export function confirmTogether(connection: Connection, clock: Clock, busy: () => boolean): Confirmation {
  let gathering: Group | undefined;
  let awaited = 0;

  function send(): void {
    const canWait = awaited > 0 && busy() && clock.now() < clock.budget.abandonAt;
    if (!gathering || canWait) return;
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
      if (last) {
        await untilLed(asking(connection, last.ackSubject, by - clock.now()), async (ms) => {
          for (const { ackSubject, settlement } of settlements) connection.publish(ackSubject, settlement);
          await answered(connection, clock, last.ackSubject, last.settlement, ms);
        });
      }
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

/** Where nobody takes it: the consumer has no leader for the moment, or is gone. */
function asking(connection: Connection, ackSubject: string, ms: number) {
  return {
    ms: Math.max(1, Math.min(patienceMs, ms)),
    async isThere(leftMs: number) {
      const answer = await consumerInfo(connection, consumerOf(ackSubject), leftMs).catch(() => undefined);
      return answer && answer.error?.code !== 404;
    },
  };
}

async function answered(
  connection: Connection,
  clock: Clock,
  ackSubject: string,
  settlement: Uint8Array | string,
  ms: number,
): Promise<void> {
  const timeout = Math.max(1, ms);
  const asked = clock.now();
  await within(timeout, "confirming a settlement", connection.request(ackSubject, settlement, { timeout }));
  clock.learn(clock.now() - asked);
}
