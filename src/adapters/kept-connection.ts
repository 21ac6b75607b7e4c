import { setImmediate as nextTurn } from "node:timers/promises";
import type { Connection } from "../nats/connection.ts";
import { isTimeout } from "../nats/jetstream.ts";
import { point, within } from "../nats/within.ts";

/** One connection for all invocations of an instance, which is frozen between them. */
export interface KeptConnection {
  /**
   * The connection that is kept, where it is still good, else a new one, within `ms`. `close` gives it back: it is kept
   * where nothing is outstanding, and closed where a request was not answered or the log-in was not confirmed.
   * @throws what opening it throws.
   */
  connect(ms: number): Promise<Connection>;
  /** Has the next one asked whether it is still there, whoever uses it: something over it has failed. */
  doubt(): void;
  /** Closes it, whoever uses it. */
  end(): Promise<void>;
}

/** How long a connection may take to answer after a freeze; without an answer it is replaced. */
const probeMs = 400;

/** One that was used so shortly before is not asked: that would double what a publish takes. */
const freshMs = 1_000;

/** Keeps what `open` opens for as long as it is not idle for more than `idleMs`. It is the same object all that time. */
export function keepConnection(open: (ms: number) => Promise<Connection>, idleMs: number): KeptConnection {
  let kept: Promise<Lending> | undefined;

  return {
    doubt() {
      kept?.then(
        (lending) => lending.doubt(),
        () => {},
      );
    },
    async connect(ms) {
      const by = Date.now() + ms;
      const known = kept;
      const lending = await known?.catch(() => undefined);
      if (!lending || !(await lending.isGood(Math.min(probeMs, ms / 4)))) {
        if (lending) void lending.end().catch(() => {}); // a peer that is gone does not answer
        if (kept === known) kept = open(by - Date.now()).then((connection) => lendingOf(connection, idleMs));
      }
      return (await (kept as Promise<Lending>)).lend();
    },
    async end() {
      await (await kept?.catch(() => undefined))?.end();
    },
  };
}

interface Lending {
  /** Whether it answers, or was used a moment ago. */
  isGood(ms: number): Promise<boolean>;
  doubt(): void;
  lend(): Connection;
  end(): Promise<void>;
}

function lendingOf(connection: Connection, idleMs: number): Lending {
  let borrowers = 0;
  let unanswered = 0;
  let usedAt = 0;
  let isDoubtful = false; // until it has answered again
  let isOpen = true;
  let isLoggedIn = connection.confirmed === undefined; // until then an answer to the log-in would pass for one to a question
  let ended: Promise<void> | undefined;
  void connection.closed().then(() => {
    isOpen = false;
  });
  connection.confirmed?.then(
    () => {
      isLoggedIn = true;
    },
    () => {}, // whoever wants to know asks
  );

  const lent: Connection = Object.assign(Object.create(connection) as Connection, {
    request(...asked: Parameters<Connection["request"]>) {
      const answer = connection.request(...asked);
      const heard = () => {
        unanswered -= 1;
      };
      unanswered += 1;
      answer.then(heard, (error: unknown) => {
        if (isTimeout(error)) isDoubtful = true;
        else heard();
      });
      return answer;
    },
    async close() {
      borrowers -= 1;
      usedAt = Date.now();
      if (borrowers === 0 && !(isLoggedIn && unanswered === 0 && idleMs > 0)) await end();
    },
  });

  function end(): Promise<void> {
    isOpen = false;
    ended ??= connection.close();
    return ended;
  }

  return {
    end,
    lend() {
      borrowers += 1;
      return lent;
    },
    doubt() {
      isDoubtful = true;
    },
    async isGood(ms) {
      const idle = Date.now() - usedAt;
      if (isOpen && isDoubtful) isDoubtful = !(await answers(connection, ms));
      if (isDoubtful || borrowers > 0 || !isOpen) return isOpen && !isDoubtful;
      if (!(idle >= 0 && idle <= idleMs)) return false; // a clock that was set back tells nothing
      if (idle < freshMs) {
        await point("hearing what came meanwhile", turns(3));
        // in the same flight as what is asked of it now, which fails then instead of waiting for its time
        void answers(connection, probeMs).then(async (does) => {
          if (!does) await end().catch(() => {});
        });
      } else if (!(await answers(connection, ms))) return false;
      return isOpen;
    },
  };
}

/** Of the event loop: one to read what came while it was frozen, such as its end, one to tell of that, and one to spare. */
async function turns(count: number): Promise<void> {
  for (let n = 0; n < count; n++) await nextTurn();
}

async function answers(connection: Connection, ms: number): Promise<boolean> {
  if (!connection.flush) return false;
  let isHeard = false;
  const heard = connection.flush().then(() => {
    isHeard = true;
  });
  const told = Promise.race([heard, connection.closed()]); // of which a flush says nothing
  await within(ms, "asking whether the server is still there", told).catch(() => turns(3)); // it may be there, unread
  return isHeard;
}
