import { type NatsConnection, PermissionViolationError, wsconnect } from "@nats-io/nats-core";
import { ConnectionFailedError, SortieError } from "../errors.ts";
import { answersOn } from "./answers.ts";
import { explainingDenial } from "./denied.ts";
import { afterUpgrade, closedEarly, failureAt, refused, silent, together, told } from "./failure.ts";
import { inboxPrefixOf } from "./inbox.ts";
import { type Credentials, loginWith } from "./login.ts";
import { type OpenSocket, openSocket } from "./open.ts";
import { inRandomOrder, type Server, serversOf } from "./servers.ts";
import { wire } from "./wire.ts";
import { pause, within } from "./within.ts";

/** What Sortie needs of a NATS connection; `wsconnect`, `nats.ws` and the TCP transports all give it. */
export type Connection = Pick<NatsConnection, "publish" | "subscribe" | "request" | "close" | "closed" | "info"> & {
  /** Tells of what the server refuses. Without it, or with one of another shape, that is noticed by its silence. */
  status?(): AsyncIterable<{ readonly type: string; readonly error?: unknown }>;
  /**
   * Resolves when the server has taken the connection's credentials. Without it they have been taken already.
   * Rejects with ConnectionFailedError.
   */
  readonly confirmed?: Promise<void>;
  /** A round trip to the server itself. Without it nobody can tell whether it is still there, and the connection is not kept. */
  flush?(): Promise<void>;
  /** What the subjects begin with at which it hears answers. @default "_INBOX" */
  readonly inboxPrefix?: string;
};

/** Where the server is and how to log in. */
export interface ServerOptions extends Credentials {
  /** How this runtime opens a WebSocket. @default `new WebSocket(url)` */
  open?: OpenSocket | undefined;
  /**
   * A `ws://` or `wss://` URL of the server's WebSocket listener, in which a user and password may stand; or several,
   * separated by commas.
   */
  url: string;
  /** The connection's name in the server's monitoring. */
  name?: string | undefined;
}

/**
 * Opens a connection within `ms`, whatever the peer does; it does not reconnect, since an invocation has no time for it.
 * The server's INFO comes with its answer to the upgrade, and from then on the connection can be used: what is asked first
 * leaves in the same flight as the log-in, and `confirmed` tells how that went. Of several servers one is tried after the
 * other, in random order, each for its share of the time that is left.
 * @throws ConnectionFailedError naming the hosts but none of the credentials; SortieError `not-configured` for settings that
 * cannot be any.
 */
export async function connect(options: ServerOptions, ms: number): Promise<Connection> {
  const servers = inRandomOrder(serversOf(options.url));
  if (typeof WebSocket === "undefined") {
    throw new SortieError(
      "connection-failed",
      "This runtime has no WebSocket: Sortie needs Node 22 or newer, or a Worker",
    );
  }
  loginWith(options); // what cannot be any is to be known before a server is asked
  const until = Date.now() + ms;
  const left = () => until - Date.now();
  const failed: { server: Server; error: unknown }[] = [];
  for (const [n, server] of servers.entries()) {
    const share = n === 0 ? ms / servers.length : left() / (servers.length - n);
    if (n > 0 && share <= 0) break; // the process was held up
    try {
      return await dial(server, options, share);
    } catch (error) {
      failed.push({ server, error });
    }
  }
  const spare = left();
  throw together(await Promise.all(failed.map(({ server, error }) => failureAt(server, error, spare))));
}

async function dial(server: Server, options: ServerOptions, ms: number): Promise<Connection> {
  const login = loginWith(options, server.user);
  const gone = new AbortController();
  const inboxPrefix = inboxPrefixOf(login.name);
  const broken = Promise.withResolvers<never>();
  const confirmed = Promise.withResolvers<void>();
  confirmed.promise.catch(() => {}); // whoever wants to know asks
  let socket: WebSocket | undefined;
  let opened = false;
  const dialled = wsconnect({
    servers: server.url,
    timeout: ms,
    reconnect: false,
    noAsyncTraces: true, // or each request makes two stacks, a third of what a publish costs
    maxReconnectAttempts: 0, // or a refused dial would be tried again behind our back
    name: options.name ?? "sortie",
    inboxPrefix,
    ...(server.user && { user: server.user, pass: server.pass ?? "" }),
    ...(login.authenticator && { authenticator: login.authenticator }),
    wsFactory: async (url) => {
      try {
        const opening = (options.open ?? openSocket)(url, gone.signal, broken.reject);
        const raw = opening instanceof Promise ? await opening : opening; // one that breaks at once is heard only without a wait
        if (raw.readyState === 1) opened = true;
        raw.addEventListener("open", () => {
          opened = true;
        });
        socket = wire(raw, {
          prepare: login.prepare,
          broke: broken.reject,
          gone,
          said(refusal) {
            if (refusal === undefined) return confirmed.resolve();
            const error = refused(refusal, login);
            broken.reject(error);
            confirmed.reject(told(server, error));
          },
        });
        return { socket, encrypted: url.startsWith("wss:") };
      } catch (error) {
        broken.reject(error); // the client would wait for a factory that throws
        throw error;
      }
    },
  });
  try {
    const connection = await within(ms, "connecting", Promise.race([dialled, broken.promise]));
    const asked = connection.info?.auth_required === true;
    void connection.closed().then(() => confirmed.reject(told(server, closedEarly(asked, login))));
    const close = connection.close.bind(connection);
    const answers = answersOn(connection, inboxPrefix);
    void eachDenial(connection, (denial) => {
      if (denial.operation === "publish") return answers.denied(denial.subject, denial);
      if (!denial.subject.startsWith("_INBOX.")) return;
      // without its answers nothing can be done
      const confirmed = Promise.reject(told(server, refused(denial.message, login)));
      confirmed.catch(() => {});
      Object.assign(connection, { confirmed });
    });
    return Object.assign(connection, {
      confirmed: confirmed.promise,
      inboxPrefix,
      request: explainingDenial(answers.request),
      close() {
        // now: the client would wait 100 ms for what was sent to leave, and the function may be frozen by then
        socket?.close();
        return close();
      },
    });
  } catch (error) {
    gone.abort();
    dialled.then(disconnect, () => {}); // the one that came too late must not stay open
    if (error instanceof SortieError) throw silent(opened, ms);
    throw opened ? afterUpgrade(error) : error;
  }
}

/** Tells of each that the server does not let this login do. */
async function eachDenial(
  connection: Pick<Connection, "status">,
  tell: (denial: PermissionViolationError) => void,
): Promise<void> {
  for await (const { error } of connection.status?.() ?? []) if (error instanceof PermissionViolationError) tell(error);
}

/**
 * As `connect`, for who has nothing to ask that could leave with the log-in: waits until the server has taken it, within `ms`
 * in all.
 * @throws as `connect` does.
 */
export async function connectAndLogIn(options: ServerOptions, ms: number): Promise<Connection> {
  const until = Date.now() + ms;
  const connection = await connect(options, ms);
  try {
    await within(until - Date.now(), "logging in", connection.confirmed ?? Promise.resolve());
    await assertLoggedIn(connection);
    return connection;
  } catch (error) {
    disconnect(connection);
    if (error instanceof ConnectionFailedError) throw error;
    const hosts = serversOf(options.url).map(({ host }) => host);
    throw new ConnectionFailedError(
      "lost",
      `Could not log in to NATS at ${hosts.join(", ")}: it does not answer within ${Math.round(ms)} ms. Look into the server's log.`,
      { cause: error },
    );
  }
}

/**
 * Throws `connection-failed` where the server has refused the log-in: what else then failed, failed because of that.
 */
export async function assertLoggedIn(connection: Connection): Promise<void> {
  if (!connection.confirmed) return;
  await pause(0, "hearing what became of the log-in"); // it may be told just now
  await Promise.race([connection.confirmed, Promise.resolve()]);
}

const listening = new WeakMap<Connection, Set<(error: Error | undefined) => void>>();

/** Calls back when the connection is closed, by whomever; what it returns ends that. One may outlive many invocations. */
export function onClosed(connection: Connection, listener: (error: Error | undefined) => void): () => void {
  let listeners = listening.get(connection);
  if (!listeners) {
    const told = new Set<typeof listener>();
    listeners = told;
    listening.set(connection, told);
    void connection.closed().then((error) => {
      for (const each of told) each(error ?? undefined);
    });
  }
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const denied = new WeakMap<Connection, Set<(subject: string) => void>>();

/** Calls back with a subject that this login may not publish to, when the server says so; what it returns ends that. */
export function onDenied(connection: Connection, listener: (subject: string) => void): () => void {
  let listeners = denied.get(connection);
  if (!listeners) {
    const told = new Set<typeof listener>();
    listeners = told;
    denied.set(connection, told);
    void eachDenial(connection, ({ operation, subject }) => {
      if (operation === "publish") for (const each of told) each(subject);
    });
  }
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The most bytes that the server takes in one message, headers included. */
export function maxPayloadOf(connection: Connection): number {
  return connection.info?.max_payload ?? 1024 * 1024;
}

/** Closes without waiting: what was sent is confirmed already, and a peer that is gone never answers. */
export function disconnect(connection: Connection): void {
  connection.close().catch(() => {});
}
