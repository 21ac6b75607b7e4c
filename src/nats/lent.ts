import { MsgHdrsImpl } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import { type Connection, maxPayloadOf, onClosed, onDenied } from "./connection.ts";
import { isAtLeast } from "./jetstream.ts";
import { openPullAccounts, type PullAccount, pullIn } from "./pulls-lent.ts";
import {
  errorToWire,
  type Lender,
  type LentSession,
  lengthOf,
  messageToWire,
  type WireAnswer,
  type WireError,
  type WireMessage,
  type WireNews,
  type WireOrder,
  type WirePublish,
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

/** As a server puts a pull off that it cannot serve for the moment. */
const comeAgain = new TextEncoder().encode("NATS/1.0 409 Server Shutdown\r\n\r\n");

const ended = new SortieError("connection-lost", "The session has ended");

/** The most that one `next` hands over, but for a message that is larger: Workers RPC takes 32 MiB. */
const mostAtOnce = 8 * 1024 * 1024;

/**
 * The most that pulls may ask for at the same time. A server writes all that waits as one WebSocket message, and workerd closes
 * the socket at 32 MiB.
 */
const mostPulled = 24 * 1024 * 1024;

/** What is smaller than that is not worth being counted on its own. */
const smallBytes = 64 * 1024;

/** How long an answer takes to be handed over, about: of when it was, nobody is told. */
const handingMs = 250;

/** What is decided by a server's version: one that is as able will do. */
const abilities = ["2.10", "2.11", "2.12", "2.14"];

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
  const accounts = openPullAccounts(Math.min(mostBytes, mostPulled), () => bytes);

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

  function tooSlow(held: number): SortieError {
    return new SortieError(
      "overloaded",
      `The hub holds ${held} bytes that this session has subscribed to and not taken, of ${bytes} in hand, and takes a quarter of ${mostBytes} at most: pull what comes in such numbers`,
    );
  }

  function free(size: number): void {
    bytes -= size;
    accounts.release();
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
      free(size);
    }
  }

  async function answer(over: ((ms: number) => Promise<Connection>) | Connection, asked: WireRequest) {
    const until = Date.now() + asked.timeout;
    const run = async (): Promise<WireAnswer> => {
      const connection = typeof over === "function" ? await over(Math.min(asked.timeout, connectingMs)) : over;
      assertAsAble(connection, asked.version);
      assertFits(connection, asked);
      const timeout = Math.max(1, until - Date.now());
      const options = { timeout, ...headersIn(asked.headers) };
      try {
        return { message: handedOver(messageToWire(await connection.request(asked.subject, asked.payload, options))) };
      } catch (error) {
        await kept.assertLoggedIn(connection); // or it failed because of that
        const told = errorToWire(error);
        if (told.kind === "timeout") void kept.probe(connection);
        return { error: told };
      }
    };
    return counted(sizeOf(asked), run).catch((error: unknown) => ({ error: errorToWire(error) }));
  }

  /** A large answer is of what was only read: it may be refused. */
  function handedOver(message: WireMessage): WireMessage {
    const size = lengthOf(message);
    if (size < smallBytes) return message;
    if (bytes + size > mostBytes) throw overloaded();
    bytes += size;
    setTimeout(free, handingMs, size);
    return message;
  }

  function openSession(connection: Connection): LentSession {
    const subscriptions = new Map<number, { subject: string; pulls: PullAccount; unsubscribe(): void }>();
    const news: { readonly one: WireNews; readonly size: number; readonly isAskedFor: boolean }[] = [];
    let flooded = 0; // of what is held nobody has asked for so many bytes
    let unflushed = 0;
    let isOver = false;
    let waiting: ((news: readonly WireNews[]) => void) | undefined;
    const session = { until: Date.now() + longestSessionMs, end: () => over(ended) };
    sessions.add(session);
    const listens = onClosed(connection, (error) =>
      over(error ?? new SortieError("connection-lost", "The hub's connection to NATS was closed")),
    );
    const isToldOfDenial = onDenied(connection, (subject) => tell({ denied: subject }));

    function tell(one: WireNews, size = 0, isAskedFor = false): void {
      if (isOver) return;
      // what was not asked for ends this session, before the server takes the connection of all for a slow one
      if (!isAskedFor && (bytes + size > mostBytes || flooded + size > mostBytes / 4)) {
        over(tooSlow(flooded));
        return;
      }
      news.push({ one, size, isAskedFor });
      if (!isAskedFor) flooded += size;
      bytes += size;
      if (news.length === 1) queueMicrotask(hand); // with what else comes in the same chunk
    }

    function hand(): void {
      if (!waiting || news.length === 0) return;
      const told = waiting;
      waiting = undefined;
      told(take());
    }

    function take(most = mostAtOnce): readonly WireNews[] {
      let size = 0;
      let count = 0;
      for (const each of news) {
        if (count > 0 && size + each.size > most) break;
        size += each.size;
        if (!each.isAskedFor) flooded -= each.size;
        count += 1;
      }
      const taken = news.splice(0, count);
      free(size);
      return taken.map(({ one }) => one);
    }

    function over(error: unknown): void {
      if (isOver) return;
      isOver = true;
      take(Infinity); // nobody can settle it any more
      news.push({ one: { closed: errorToWire(error) }, size: 0, isAskedFor: true });
      listens();
      isToldOfDenial();
      sessions.delete(session);
      for (const to of subscriptions.keys()) unsubscribe(to);
      hand();
    }

    function unsubscribe(to: number): void {
      subscriptions.get(to)?.unsubscribe();
      subscriptions.get(to)?.pulls.close();
      subscriptions.delete(to);
    }

    function subscribe(to: number, subject: string, queue: string | undefined): void {
      const pulls = accounts.open();
      const callback: NonNullable<Parameters<Connection["subscribe"]>[1]>["callback"] = (error, message) => {
        if (error) {
          tell({ to, error: errorToWire(error) });
          return;
        }
        const wired = messageToWire(message);
        const size = lengthOf(wired);
        tell({ to, message: wired }, size, pulls.came(message, size));
        accounts.release();
      };
      const subscription = connection.subscribe(subject, { callback, ...(queue && { queue }) });
      subscriptions.set(to, { subject, pulls, unsubscribe: () => subscription.unsubscribe() });
    }

    function publish(order: WirePublish): void {
      assertFits(connection, order);
      const { subject, payload, reply, headers } = order;
      const options = { ...(reply && { reply }), ...headersIn(headers) };
      const inbox = reply && `${reply.slice(0, reply.lastIndexOf("."))}.*`;
      const [to, asking] = [...subscriptions].find(([, each]) => each.subject === inbox) ?? [];
      const pull = asking && pullIn(order, { mostBytes, maxPayload: maxPayloadOf(connection) });
      if (!pull || to === undefined || reply === undefined) {
        sends(sizeOf(order));
        connection.publish(subject, payload, options);
        return;
      }
      const leave = () => connection.publish(subject, pull.payload, options);
      const putOff = () => tell({ to, message: { subject: reply, data: new Uint8Array(), headers: comeAgain } });
      asking.pulls.ask({ ...pull, reply, leave, putOff });
    }

    /** What is sent without asking is in hand until the server has it. */
    function sends(size: number): void {
      unflushed += size;
      if (unflushed < smallBytes) return;
      if (bytes + unflushed > mostBytes) throw overloaded();
      const counted = unflushed;
      unflushed = 0;
      bytes += counted;
      const gone = Promise.race([connection.flush?.(), connection.closed()]); // the client's flush does not end with it
      void gone.then(
        () => free(counted),
        () => free(counted),
      );
    }

    function carryOut(order: WireOrder): void {
      if ("publish" in order) publish(order.publish);
      else if ("subscribe" in order) subscribe(order.subscribe, order.subject, order.queue);
      else unsubscribe(order.unsubscribe);
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
    async about(ms) {
      try {
        const { info, inboxPrefix } = await kept.use(Math.min(ms, connectingMs));
        return { info: { ...info } as NonNullable<Connection["info"]>, inboxPrefix };
      } catch (error) {
        return { error: errorToWire(error) };
      }
    },
    request: (asked) => answer(kept.use, asked),
    async session(version) {
      try {
        const connection = await kept.use(connectingMs);
        assertAsAble(connection, version);
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
function assertAsAble({ info }: Connection, version: string): void {
  if (abilities.every((wanted) => isAtLeast(info?.version, wanted) === isAtLeast(version, wanted))) return;
  throw new SortieError(
    "connection-lost",
    `The hub is connected to nats-server ${info?.version} now, and was to ${version} before: ask again`,
  );
}

/** A server closes the connection of who sends it more than it takes: it is not its sender's alone here. */
function assertFits(connection: Connection, sent: Parameters<typeof sizeOf>[0]): void {
  const most = maxPayloadOf(connection);
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
