import {
  ClosedConnectionError,
  type MsgHdrs,
  type MsgHdrsImpl,
  PermissionViolationError,
  RequestError,
  TimeoutError,
} from "@nats-io/nats-core";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { explainingDenial } from "./denied.ts";
import {
  type About,
  errorFromWire,
  type LentSession,
  messageFromWire,
  ownBytes,
  type RemoteLender,
  type WireNews,
  type WireOrder,
} from "./remote.ts";
import { within } from "./within.ts";

/** How long beyond its time the lender's word on a request may take. */
const lateMs = 500;

type Callback = NonNullable<NonNullable<Parameters<Connection["subscribe"]>[1]>["callback"]>;

/**
 * A connection over one that `lender` holds. A request is one round trip to it; what is published without asking, and
 * subscriptions, go by a session, which is opened in the same flight and keeps their order. `closed` resolves when the lender
 * has heard of it. `onLost` is told when nothing is certain any more of what is known about the lender.
 */
export function borrow(lender: RemoteLender, { info, inboxPrefix }: About, onLost: () => void): Connection {
  const ended = Promise.withResolvers<Error | undefined>();
  const callbacks = new Map<number, Callback>();
  const asking = new Set<(error: Error) => void>();
  const denials: { type: "error"; error: Error }[] = [];
  let wake = () => {};
  let orders: WireOrder[] = [];
  let opened: LentSession | undefined;
  let subscriptions = 0;
  let isClosed = false;

  /** What is asked for of a session that is not there yet leaves with the asking for it. */
  function session(): LentSession {
    if (opened) return opened;
    opened = lender.session(info.version);
    void listen(opened);
    return opened;
  }

  async function listen(from: LentSession): Promise<void> {
    try {
      while (!isClosed) for (const news of await from.next()) hear(news);
    } catch (error) {
      end(lost(error));
    }
  }

  function hear(news: WireNews): void {
    if ("closed" in news) end(errorFromWire(news.closed));
    else if ("denied" in news) {
      const what = `Permissions Violation for Publish to "${news.denied}"`;
      denials.push({ type: "error", error: new PermissionViolationError(what, "publish", news.denied) });
      wake();
    } else if ("message" in news) {
      callbacks.get(news.to)?.(null, messageFromWire(news.message, connection.publish));
    } else {
      callbacks.get(news.to)?.(errorFromWire(news.error), {} as never); // as the client calls it
    }
  }

  function lost(error: unknown): SortieError {
    onLost();
    return new SortieError(
      "connection-lost",
      `The hub, which holds the connection to NATS, was lost: ${textOf(error)}`,
      {
        cause: error,
      },
    );
  }

  function end(error?: Error): void {
    if (isClosed) return;
    if (!error) flush(); // what was sent before
    isClosed = true;
    if (error) onLost();
    for (const fail of asking) fail(error ?? new RequestError("connection closed"));
    callbacks.clear();
    wake();
    const gone = opened ? letGo(opened) : Promise.resolve();
    if (error) ended.resolve(error);
    else void gone.then(() => ended.resolve(undefined));
  }

  function order(one: WireOrder): void {
    if (isClosed) throw new ClosedConnectionError();
    if (orders.push(one) === 1) queueMicrotask(flush);
  }

  function flush(): void {
    if (orders.length === 0 || isClosed) return;
    const leaving = orders;
    orders = [];
    session()
      .send(leaving)
      .catch((error: unknown) => end(lost(error)));
  }

  const connection: Connection = {
    info,
    publish(subject, payload = "", options) {
      order({ publish: { subject, ...sent(payload), reply: options?.reply, headers: encoded(options?.headers) } });
    },
    subscribe(subject, options) {
      const id = ++subscriptions;
      const { callback, queue } = options ?? {};
      if (!callback) throw new Error("a subscription by way of a hub takes a callback");
      callbacks.set(id, callback);
      order({ subscribe: id, subject, queue });
      const unsubscribe = () => {
        if (callbacks.delete(id) && !isClosed) order({ unsubscribe: id });
      };
      return { unsubscribe } as ReturnType<Connection["subscribe"]>;
    },
    async request(subject, payload = "", options) {
      if (isClosed) throw new ClosedConnectionError();
      flush();
      const timeout = options?.timeout ?? 1_000;
      const { version } = info;
      const asked = { subject, ...sent(payload), timeout, version, headers: encoded(options?.headers) };
      const over = Promise.withResolvers<never>();
      asking.add(over.reject);
      const timer = setTimeout(() => over.reject(new TimeoutError()), timeout + lateMs);
      try {
        const answering = (opened ?? lender).request(asked).catch((error: unknown) => {
          throw lost(error);
        });
        const answer = await Promise.race([answering, over.promise]);
        if ("message" in answer) return messageFromWire(answer.message, connection.publish);
        const error = errorFromWire(answer.error, subject);
        if (error instanceof SortieError && error.code === "connection-lost") onLost();
        throw error instanceof PermissionViolationError ? new RequestError(error.message, { cause: error }) : error;
      } finally {
        clearTimeout(timer);
        asking.delete(over.reject);
      }
    },
    async *status() {
      while (!isClosed) {
        yield* denials.splice(0);
        if (isClosed) return;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
    closed: () => ended.promise,
    async close() {
      end();
    },
  };
  return Object.assign(connection, {
    request: explainingDenial(connection.request),
    ...(inboxPrefix !== undefined && { inboxPrefix }),
  });
}

/** Ends what the lender keeps for it; never throws. */
async function letGo(session: LentSession & Partial<Disposable>): Promise<void> {
  try {
    await within(lateMs, "ending a session", session.end());
  } catch {
    // the lender notices by itself, a little later
  } finally {
    session[Symbol.dispose]?.();
  }
}

function sent(payload: Uint8Array | string): { payload: Uint8Array | string } {
  return { payload: typeof payload === "string" ? payload : ownBytes(payload) };
}

function encoded(headers: MsgHdrs | undefined): Uint8Array | undefined {
  return (headers as MsgHdrsImpl | undefined)?.encode();
}
