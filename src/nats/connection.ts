import {
  credsAuthenticator,
  type NatsConnection,
  PermissionViolationError,
  tokenAuthenticator,
  wsconnect,
} from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import { explainingDenial } from "./denied.ts";
import { inboxPrefixOf } from "./inbox.ts";
import { within } from "./within.ts";

/** What Sortie needs of a NATS connection; `wsconnect`, `nats.ws` and the TCP transports all give it. */
export type Connection = Pick<NatsConnection, "publish" | "subscribe" | "request" | "close" | "closed" | "info"> & {
  /** Tells of what the server refuses. Without it, or with one of another shape, that is noticed by its silence. */
  status?(): AsyncIterable<{ readonly type: string; readonly error?: unknown }>;
  /**
   * Resolves when the server has taken the connection's credentials. Without it they have been taken already.
   * Rejects with SortieError `connection-failed`.
   */
  readonly confirmed?: Promise<void>;
  /** What the subjects begin with at which it hears answers. @default "_INBOX" */
  readonly inboxPrefix?: string;
};

/** Opens a WebSocket; an abort of `gone` lets go of it at once, whatever the peer does. */
export type OpenSocket = (url: string, gone: AbortSignal) => WebSocket | Promise<WebSocket>;

/** Where the server is and how to log in; a user and password may stand in the URL. */
export interface ServerOptions {
  /** How this runtime opens a WebSocket. @default `new WebSocket(url)` */
  open?: OpenSocket | undefined;
  /** A `ws://` or `wss://` URL of the server's WebSocket listener. */
  url: string;
  /** The contents of a `.creds` file. */
  creds?: string | undefined;
  token?: string | undefined;
  /** The connection's name in the server's monitoring. */
  name?: string | undefined;
}

/**
 * Opens a connection within `ms`, whatever the peer does; it does not reconnect, since an invocation has no time for it.
 * The server's INFO comes with its answer to the upgrade, and from then on the connection can be used: what is asked first
 * leaves in the same flight as the log-in, and `confirmed` tells how that went.
 * @throws SortieError `connection-failed`, naming the host but none of the credentials.
 */
export async function connect(server: ServerOptions, ms: number): Promise<Connection> {
  const { host, user, pass, servers } = parseUrl(server.url);
  if (typeof WebSocket === "undefined") {
    throw new SortieError(
      "connection-failed",
      "This runtime has no WebSocket: Sortie needs Node 22 or newer, or a Worker",
    );
  }
  const broken = Promise.withResolvers<never>();
  const gone = new AbortController();
  let dialledSocket: WebSocket | undefined;
  const login = Promise.withResolvers<void>();
  const inboxPrefix = inboxPrefixOf({ user, creds: server.creds });
  login.promise.catch(() => {}); // whoever wants to know asks
  const failed = (error: unknown) => {
    const reason = error instanceof Error ? error.message || error.name : String(error);
    return new SortieError(
      "connection-failed",
      `Could not connect to NATS at ${host}: ${reason}. Check that NATS_URL names a WebSocket listener which is up, trusted (TLS) and takes these credentials.`,
      { cause: error },
    );
  };
  const dialled = wsconnect({
    servers,
    timeout: ms,
    reconnect: false,
    noAsyncTraces: true, // or each request makes two stacks, a third of what a publish costs
    maxReconnectAttempts: 0, // or a refused dial would be tried again behind our back
    name: server.name ?? "sortie",
    inboxPrefix,
    ...(user && { user, pass }),
    ...authenticator(server),
    wsFactory: async (url) => {
      try {
        const opened = (server.open ?? openSocket)(url, gone.signal);
        const socket = opened instanceof Promise ? await opened : opened; // one that breaks at once is heard only without a wait
        greetAhead(socket, (refused) => (refused ? login.reject(failed(refused)) : login.resolve()));
        dialledSocket = closing(socket, gone, broken.reject);
        return { socket: dialledSocket, encrypted: url.startsWith("wss:") };
      } catch (error) {
        broken.reject(error); // the client would wait for a factory that throws
        throw error;
      }
    },
  });
  try {
    const connection = await within(ms, "connecting", Promise.race([dialled, broken.promise]));
    connection.closed().then((error) => login.reject(failed(error ?? new Error("the server closed the connection"))));
    const close = connection.close.bind(connection);
    return Object.assign(connection, {
      confirmed: login.promise,
      inboxPrefix,
      request: explainingDenial(connection.request.bind(connection)),
      close() {
        // now: the client would wait 100 ms for what was sent to leave, and the function may be frozen by then
        dialledSocket?.close();
        return close();
      },
    });
  } catch (error) {
    gone.abort();
    dialled.then(disconnect, () => {}); // the one that came too late must not stay open
    throw failed(error);
  }
}

/**
 * Throws `connection-failed` where the server has refused the log-in: what else then failed, failed because of that.
 */
export async function assertLoggedIn(connection: Connection): Promise<void> {
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

const refused = new WeakMap<Connection, Set<(subject: string) => void>>();

/** Calls back with a subject that this login may not publish to, when the server says so; what it returns ends that. */
export function onDenied(connection: Connection, listener: (subject: string) => void): () => void {
  let listeners = refused.get(connection);
  if (!listeners) {
    const told = new Set<typeof listener>();
    listeners = told;
    refused.set(connection, told);
    void tellDenied(connection, told);
  }
  listeners.add(listener);
  return () => listeners.delete(listener);
}

async function tellDenied(connection: Connection, listeners: ReadonlySet<(subject: string) => void>): Promise<void> {
  for await (const { error } of connection.status?.() ?? []) {
    if (!(error instanceof PermissionViolationError) || error.operation !== "publish") continue;
    for (const listener of listeners) listener(error.subject);
  }
}

/** Closes without waiting: what was sent is confirmed already, and a peer that is gone never answers. */
export function disconnect(connection: Connection): void {
  connection.close().catch(() => {});
}

function parseUrl(text: string) {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !["ws:", "wss:"].includes(url.protocol)) {
    const got = url ? `${url.protocol}//${url.host}` : "something that is no URL";
    throw new SortieError(
      "not-configured",
      `NATS_URL: expected a WebSocket URL such as "wss://nats.example.com:443", got ${got}. Functions reach NATS over its WebSocket listener (\`websocket { … }\` in the server's configuration).`,
    );
  }
  const host = `${url.protocol}//${url.host}`;
  const [user, pass] = [url.username, url.password].map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw new SortieError(
        "not-configured",
        "NATS_URL: expected its user and password to be percent-encoded: `%` itself is `%25`",
      );
    }
  });
  return { host, user, pass, servers: `${host}${url.pathname}${url.search}` };
}

function authenticator({ creds, token }: ServerOptions) {
  if (creds) return { authenticator: credsAuthenticator(new TextEncoder().encode(linesOf(creds))) };
  if (token) return { authenticator: tokenAuthenticator(token) };
  return {};
}

/** A `.creds` file as it was, after an environment has had its way with its line ends. */
function linesOf(creds: string): string {
  return `${creds.replaceAll("\\n", "\n").replaceAll("\r", "").trim()}\n`;
}

/**
 * Answers the client's first PING in the server's place, so that it need not wait a round trip before it may be used, and
 * tells what the server then really said. The server's own PONG finds nobody waiting for it.
 */
function greetAhead(socket: WebSocket, said: (refused?: Error) => void): void {
  const send = socket.send.bind(socket);
  socket.send = (data) => {
    send(data);
    if (!(data instanceof ArrayBuffer) || new TextDecoder().decode(data) !== "PING\r\n") return;
    socket.send = send;
    socket.addEventListener("message", function listen({ data }) {
      const text = new TextDecoder().decode(data);
      const first = /^(?:PONG\r\n|-ERR '(.*)')/m.exec(text); // what comes after the PONG is about something else
      if (!first) return;
      socket.removeEventListener("message", listen);
      said(first[1] === undefined ? undefined : new Error(first[1]));
    });
    socket.onmessage?.({ data: new TextEncoder().encode("PONG\r\n").buffer } as MessageEvent);
  };
}

function openSocket(url: string, gone: AbortSignal): WebSocket {
  const socket = new WebSocket(url);
  gone.addEventListener("abort", () => socket.close());
  return socket;
}

/**
 * The client waits for `onclose` without end after `close()`: this socket reports it, and is let go, after 250 ms at the
 * latest. And the client hears nothing of a socket that broke before it listened: `broken` does.
 */
function closing(socket: WebSocket, gone: AbortController, broken: (error: Error) => void): WebSocket {
  socket.addEventListener("error", (event) =>
    broken(new Error(("message" in event && event.message) || "connection refused")),
  );
  const close = socket.close.bind(socket);
  socket.close = (...reason) => {
    const timer = setTimeout(() => {
      socket.onclose?.({ wasClean: false, code: 1006, reason: "no answer to close" } as CloseEvent);
      gone.abort();
    }, 250);
    socket.addEventListener("close", () => clearTimeout(timer));
    close(...reason);
  };
  return socket;
}
