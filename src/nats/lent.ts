import { MsgHdrsImpl } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import { type Connection, onClosed, onDenied } from "./connection.ts";
import {
  errorToWire,
  type Lender,
  type LentSession,
  messageToWire,
  type WireAnswer,
  type WireError,
  type WireNews,
  type WireOrder,
  type WireRequest,
} from "./remote.ts";
import { type StandingOptions, standingConnection } from "./standing.ts";

export interface LendingOptions extends Omit<StandingOptions, "isBusy"> {
  /** The most requests that may be unanswered at the same time. */
  readonly outstanding: number;
  /** The most bytes that it may hold: of these, and of what borrowers have not taken yet. */
  readonly bytes: number;
}

/** How long a request waits for a connection. */
const connectingMs = 5_000;

/** How long `next` waits: of a borrower that is no more nobody hears as long as it is being answered. */
const waitMs = 3_000;

const ended = new SortieError("connection-lost", "The session has ended");

/** No invocation is longer: a session that outlives that has lost its borrower. */
const longestSessionMs = 16 * 60_000;

/**
 * Lends one connection to many: each is answered what it asked for, and hears what it subscribed to. What does not fit is
 * refused, so that who holds it stays within its memory; what the server did not acknowledge is told as an error.
 */
export function lend({ outstanding: most, bytes: mostBytes, ...keeping }: LendingOptions): Lender {
  let outstanding = 0;
  let bytes = 0;
  const sessions = new Set<{ readonly until: number; end(): void }>();
  const kept = standingConnection({ ...keeping, isBusy });

  function isBusy(): boolean {
    for (const { until, end } of sessions) if (until < Date.now()) end();
    return outstanding + sessions.size > 0;
  }

  function overloaded(): SortieError {
    return new SortieError(
      "overloaded",
      `The hub has ${outstanding} requests and ${bytes} bytes in hand, and takes ${most} and ${mostBytes} at most: try again, or let several hubs share the load (viaHub(…, { connections: 4 }))`,
    );
  }

  /** Runs it while it counts as `size` bytes in hand. */
  async function counted<T>(size: number, run: () => Promise<T>): Promise<T> {
    if (outstanding >= most || bytes + size > mostBytes) throw overloaded();
    outstanding += 1;
    bytes += size;
    try {
      return await run();
    } finally {
      outstanding -= 1;
      bytes -= size;
    }
  }

  async function answer(over: ((ms: number) => Promise<Connection>) | Connection, asked: WireRequest) {
    const until = Date.now() + asked.timeout;
    const run = async (): Promise<WireAnswer> => {
      const connection = typeof over === "function" ? await over(Math.min(asked.timeout, connectingMs)) : over;
      assertSame(connection, asked.version);
      assertFits(connection, asked);
      const timeout = Math.max(1, until - Date.now());
      const options = { timeout, ...headersIn(asked.headers) };
      try {
        return { message: messageToWire(await connection.request(asked.subject, asked.payload, options)) };
      } catch (error) {
        const told = errorToWire(error);
        if (told.kind === "timeout") void kept.probe(connection);
        return { error: told };
      }
    };
    return counted(sizeOf(asked), run).catch((error: unknown) => ({ error: errorToWire(error) }));
  }

  function openSession(connection: Connection): LentSession {
    const subscriptions = new Map<number, ReturnType<Connection["subscribe"]>>();
    let news: WireNews[] = [];
    let held = 0;
    let isOver = false;
    let waiting: ((news: readonly WireNews[]) => void) | undefined;
    const session = { until: Date.now() + longestSessionMs, end: () => over(ended) };
    sessions.add(session);
    const listens = onClosed(connection, (error) =>
      over(error ?? new SortieError("connection-lost", "The hub's connection to NATS was closed")),
    );
    const isToldOfDenial = onDenied(connection, (subject) => tell({ denied: subject }));

    function tell(one: WireNews, size = 0): void {
      if (isOver) return;
      if (bytes + size > mostBytes) {
        over(overloaded());
        return;
      }
      news.push(one);
      held += size;
      bytes += size;
      if (news.length === 1) queueMicrotask(hand); // with what else comes in the same chunk
    }

    function hand(): void {
      if (!waiting || news.length === 0) return;
      const told = waiting;
      waiting = undefined;
      told(take());
    }

    function take(): readonly WireNews[] {
      bytes -= held;
      held = 0;
      const taken = news;
      news = [];
      return taken;
    }

    function over(error: unknown): void {
      if (isOver) return;
      isOver = true;
      take(); // nobody can settle it any more
      news.push({ closed: errorToWire(error) });
      listens();
      isToldOfDenial();
      sessions.delete(session);
      for (const subscription of subscriptions.values()) subscription.unsubscribe();
      subscriptions.clear();
      hand();
    }

    function carryOut(order: WireOrder): void {
      if ("publish" in order) {
        const { subject, payload, reply, headers } = order.publish;
        assertFits(connection, order.publish);
        connection.publish(subject, payload, { ...(reply && { reply }), ...headersIn(headers) });
      } else if ("subscribe" in order) {
        const { subscribe: to, subject, queue } = order;
        const callback: NonNullable<Parameters<Connection["subscribe"]>[1]>["callback"] = (error, message) => {
          if (error) tell({ to, error: errorToWire(error) });
          else tell({ to, message: messageToWire(message) }, message.data.length + message.subject.length);
        };
        subscriptions.set(to, connection.subscribe(subject, { callback, ...(queue && { queue }) }));
      } else {
        subscriptions.get(order.unsubscribe)?.unsubscribe();
        subscriptions.delete(order.unsubscribe);
      }
    }

    return {
      async send(orders) {
        try {
          if (!isOver) for (const order of orders) carryOut(order);
        } catch (error) {
          over(error);
        }
      },
      request: (asked) => answer(connection, asked),
      async next() {
        if (news.length > 0 || isOver) return take();
        return new Promise((resolve) => {
          const timer = setTimeout(() => {
            waiting = undefined;
            resolve([]);
          }, waitMs);
          waiting = (come) => {
            clearTimeout(timer);
            resolve(come);
          };
        });
      },
      async end() {
        session.end();
      },
    };
  }

  return {
    async about() {
      try {
        const { info, inboxPrefix } = await kept.use(connectingMs);
        return { info: { ...info } as NonNullable<Connection["info"]>, inboxPrefix };
      } catch (error) {
        return { error: errorToWire(error) };
      }
    },
    request: (asked) => answer(kept.use, asked),
    async session(version) {
      try {
        const connection = await kept.use(connectingMs);
        assertSame(connection, version);
        return openSession(connection);
      } catch (error) {
        return failedSession(errorToWire(error));
      }
    },
  };
}

/** One that tells, to whatever is asked of it, why there is none. */
function failedSession(error: WireError): LentSession {
  return {
    async send() {},
    request: async () => ({ error }),
    next: async () => [{ closed: error }],
    async end() {},
  };
}

/** What was decided by another server's abilities is not done by this one. */
function assertSame({ info }: Connection, version: string): void {
  if (info?.version === version) return;
  throw new SortieError(
    "connection-lost",
    `The hub is connected to nats-server ${info?.version} now, and was to ${version} before: ask again`,
  );
}

/** A server closes the connection of who sends it more than it takes: it is not its sender's alone here. */
function assertFits({ info }: Connection, sent: Parameters<typeof sizeOf>[0]): void {
  const most = info?.max_payload ?? 1024 * 1024;
  const size = sizeOf(sent);
  if (size <= most) return;
  throw new SortieError(
    "payload-too-large",
    `A message for "${sent.subject}" has ${size} bytes; the server takes ${most}`,
  );
}

function sizeOf({ payload, headers }: Pick<WireRequest, "subject" | "payload" | "headers">): number {
  const length = typeof payload === "string" ? new TextEncoder().encode(payload).length : payload.length;
  return length + (headers?.length ?? 0);
}

function headersIn(bytes: Uint8Array | undefined) {
  return bytes && { headers: MsgHdrsImpl.decode(bytes) };
}
