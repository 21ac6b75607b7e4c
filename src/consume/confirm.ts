import type { Connection } from "../nats/connection.ts";
import { within } from "../nats/within.ts";

/** How long to wait for a word of the server that is lost, as when a consumer's leader changes: functions are billed for it. */
const patienceMs = 5_000;

/** Sends a settlement and waits until `by` at most for the server's word on it. Throws `timed-out` or what the client throws. */
export type Confirm = (ackSubject: string, settlement: string, by: number) => Promise<void>;

interface Waiting {
  readonly ackSubject: string;
  readonly settlement: string;
  readonly by: number;
  readonly told: () => void;
  readonly failed: (error: unknown) => void;
}

/** Each settlement is answered by itself. */
export function confirmEach(connection: Connection, now: () => number): Confirm {
  return async (ackSubject, settlement, by) => {
    await answered(connection, ackSubject, settlement, Math.min(patienceMs, by - now()));
  };
}

/**
 * Settlements leave together and the server's answer to the last one confirms them all: a consumer's leader handles what
 * comes over one connection in order, in a cluster as well. While an answer is awaited the next ones gather, unless
 * nothing is `busy` that could join them.
 */
export function confirmTogether(connection: Connection, now: () => number, busy: () => boolean): Confirm {
  let gathered: Waiting[] = [];
  let awaited = 0;
  let planned = false;

  function send(): void {
    planned = false;
    if (gathered.length === 0 || (awaited > 0 && busy())) return;
    // an acknowledgement is what a cluster agrees on before it answers: one of them goes last
    const group = gathered.toSorted((a, b) => Number(isFinal(a)) - Number(isFinal(b)));
    gathered = [];
    void carryOut(group);
  }

  async function carryOut(group: Waiting[]): Promise<void> {
    const last = group.at(-1) as Waiting;
    const by = Math.min(...group.map((one) => one.by));
    awaited += 1;
    try {
      for (const { ackSubject, settlement } of group.slice(0, -1)) connection.publish(ackSubject, settlement);
      await answered(connection, last.ackSubject, last.settlement, Math.min(patienceMs, by - now()));
      for (const { told } of group) told();
    } catch (error) {
      for (const { failed } of group) failed(error);
    } finally {
      awaited -= 1;
      send();
    }
  }

  return (ackSubject, settlement, by) =>
    new Promise<void>((told, failed) => {
      gathered.push({ ackSubject, settlement, by, told, failed });
      if (planned) return;
      planned = true;
      queueMicrotask(send);
    });
}

function isFinal({ settlement }: Waiting): boolean {
  return settlement === "+ACK" || settlement === "+TERM";
}

function answered(connection: Connection, ackSubject: string, settlement: string, ms: number): Promise<unknown> {
  const timeout = Math.max(1, ms);
  return within(timeout, "confirming a settlement", connection.request(ackSubject, settlement, { timeout }));
}
