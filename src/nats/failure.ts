import { ConnectionFailedError, type ConnectionFailure } from "../errors.ts";
import { permissionsHint } from "./denied.ts";
import type { Login } from "./login.ts";
import type { Server } from "./servers.ts";
import { within } from "./within.ts";

/** Why there is no connection, in the words of the one who reads it: "<host> <what>. <remedy>." */
interface Why {
  readonly reason: ConnectionFailure;
  readonly what: string;
  readonly remedy: string;
}

/** An error that knows why. */
export class Known extends Error {
  readonly why: Why;

  constructor(why: Why) {
    super(why.what);
    this.why = why;
  }
}

const listener = "Check that NATS_URL names the WebSocket listener of a nats-server (`websocket { … }`), with its path";
const scheme = (is: "ws" | "wss"): Why => ({
  reason: "tls",
  what: is === "wss" ? "expects TLS" : "does not speak TLS",
  remedy: `Begin its URL with ${is}://`,
});
const untrusted: Omit<Why, "what"> = {
  reason: "tls",
  remedy:
    "Let it show a certificate for this host that is valid and complete, of an authority that this runtime trusts: Node is told of one's own by NODE_EXTRA_CA_CERTS, Workers trust public ones",
};
const unanswered: Omit<Why, "what"> = {
  reason: "address",
  remedy: "Check the host and port in NATS_URL, that the server is up, and that a firewall lets this function reach it",
};

/** What runtimes call it: Node and Bun by a code, Deno in words. */
const words: [RegExp, (code: string) => Why][] = [
  [
    /bad port/,
    () => ({ reason: "address", what: "has a port that runtimes refuse", remedy: "Listen on another port" }),
  ],
  [
    /ENOTFOUND|EAI_AGAIN|EAI_NODATA|dns error/i,
    (code) => ({ reason: "address", what: `has a name that DNS does not know${code}`, remedy: unanswered.remedy }),
  ],
  [
    /ECONNREFUSED|ConnectionRefused|connection refused/i,
    (code) => ({ ...unanswered, what: `refuses connections${code}` }),
  ],
  [
    /EHOSTUNREACH|ENETUNREACH|EADDRNOTAVAIL|ETIMEDOUT|CONNECT_TIMEOUT/,
    (code) => ({ ...unanswered, what: `cannot be reached${code}` }),
  ],
  [/WRONG_VERSION_NUMBER|EPROTO|InvalidContentType/, () => scheme("ws")],
  [
    /ERR_TLS|ERR_SSL|CERT|SELF_SIGNED|UNABLE_TO_|UnknownIssuer|certificate/,
    (code) => ({ ...untrusted, what: `shows a TLS certificate that this runtime does not trust${code}` }),
  ],
  [
    /HPE_|HTTPParser/,
    () => ({ reason: "websocket", what: "does not speak HTTP: NATS's TCP listener does not", remedy: listener }),
  ],
];

/** Something answers that is not NATS's WebSocket listener. */
export function unlike(what: string): Known {
  return new Known({
    reason: "websocket",
    what,
    remedy: `${listener}, and that what stands in front of it passes WebSockets on`,
  });
}

/** It answered the request for a WebSocket with this status; those from 520 on are what Cloudflare says of an origin. */
export function notUpgraded(status: number): Known {
  if (status === 525) return new Known({ ...untrusted, what: "fails at TLS (HTTP 525)" });
  if (status === 526)
    return new Known({ ...untrusted, what: "shows a TLS certificate that is not trusted (HTTP 526)" });
  if (status > 520) return new Known({ ...unanswered, what: `cannot be reached (HTTP ${status})` });
  return unlike(`answers HTTP ${status} and opens no WebSocket`);
}

/** It said nothing in the time that it had, `opened` or not. */
export function silent(opened: boolean, ms: number): Known {
  const time = `within ${Math.round(ms)} ms`;
  if (opened) return unlike(`took the WebSocket and sent no INFO ${time}`);
  return new Known({ ...unanswered, what: `does not answer ${time}` });
}

/** It broke as a WebSocket, before it became a connection. */
export function afterUpgrade(error: unknown): unknown {
  return error instanceof Known ? error : unlike("took the WebSocket and broke it before NATS's INFO");
}

/** The server's own words: it spoke NATS, and does not let this function in. */
export function refused(said: string, login: Login): Known {
  const what = `says "${said}"`;
  if (/permission/i.test(said))
    return new Known({ reason: "permission", what, remedy: `Allow this user to: ${permissionsHint}` });
  if (/authenti|authoriz|revoked/i.test(said))
    return new Known({ reason: "authentication", what, remedy: login.hint(Date.now()) });
  if (/maximum|throttl/i.test(said)) {
    const remedy = "Let fewer functions connect at the same time, or raise the limit of the server or the account";
    return new Known({ reason: "limit", what, remedy });
  }
  return new Known({ reason: "lost", what, remedy: "Look into the server's log" });
}

/** It was a connection, and was closed before the log-in was taken: not every runtime hands on what was said last. */
export function closedEarly(credentialsAsked: boolean, login: Login): Known {
  if (credentialsAsked)
    return new Known({
      reason: "authentication",
      what: "closed the connection where it should have taken the log-in",
      remedy: login.hint(Date.now()),
    });
  return new Known({ reason: "lost", what: "closed the connection", remedy: "Look into the server's log" });
}

/**
 * What is told of a failure at one server. Where the runtime keeps the reason to itself a second look is taken, for a
 * second at most.
 */
export async function failureAt(server: Server, error: unknown, ms: number): Promise<ConnectionFailedError> {
  return told(server, { why: (await whyOf(server, error, ms)) ?? { ...unanswered, what: "drops connections" } }, error);
}

/** A failure at one server whose reason is known. */
export function told(server: Server, { why }: Pick<Known, "why">, cause?: unknown): ConnectionFailedError {
  const { reason, what, remedy } = why;
  return new ConnectionFailedError(reason, `Could not connect to NATS at ${server.host}: it ${what}. ${remedy}.`, {
    cause,
  });
}

const furthest: readonly ConnectionFailure[] = [
  "permission",
  "authentication",
  "limit",
  "lost",
  "websocket",
  "tls",
  "address",
];

/** All that failed, as one. */
export function together(failures: readonly ConnectionFailedError[]): ConnectionFailedError {
  const [first] = failures;
  if (first && failures.length === 1) return first;
  const reason = furthest.find((each) => failures.some((failure) => failure.reason === each)) ?? "address";
  const texts = failures.map(({ message }) => message.replace("Could not connect to NATS at ", ""));
  return new ConnectionFailedError(
    reason,
    `Could not connect to any of ${failures.length} NATS servers. ${texts.join(" ")}`,
    { cause: new AggregateError(failures) },
  );
}

async function whyOf({ url }: Server, error: unknown, ms: number): Promise<Why | undefined> {
  const ambiguous = error instanceof Known && / 400 /.test(error.message) && url.startsWith("ws:"); // TLS says that, too
  if (error instanceof Known && !ambiguous) return error.why;
  const why = ambiguous ? error.why : namedBy(error);
  if ((why && !ambiguous) || ms < 50) return why;
  const gone = new AbortController();
  try {
    return (await within(Math.min(ms, 1_000), "looking why", look(url, gone.signal))) ?? why;
  } catch {
    return why;
  } finally {
    gone.abort();
  }
}

/** What a plain request meets, with the other scheme as well where that says nothing: workerd does not name its reasons. */
async function look(url: string, signal: AbortSignal): Promise<Why | undefined> {
  const seen = await request(url, signal);
  const why = seen.why;
  if (why) return why;
  const tls = url.startsWith("wss:");
  const other = await request(tls ? url.replace("wss:", "ws:") : url.replace("ws:", "wss:"), signal);
  const inside = /internal error/; // workerd, where it has no word for it: DNS and TLS
  if (inside.test(seen.text) && inside.test(other.text) && other.status === undefined)
    return { ...unanswered, what: "cannot be reached: its name is unknown, or it is no server of HTTP" };
  if (!tls && (other.status !== undefined || other.why?.remedy === untrusted.remedy)) return scheme("wss");
  if (!tls && inside.test(other.text)) {
    const remedy = `Begin its URL with wss:// where that is TLS. ${listener}`;
    return { reason: "websocket", what: "speaks no HTTP, but TLS or NATS over TCP", remedy };
  }
  if (!tls) return undefined;
  if (other.status !== undefined && other.why?.reason !== "tls") return scheme("ws");
  if (inside.test(seen.text)) return { ...untrusted, what: "fails at TLS" };
  return undefined;
}

async function request(url: string, signal: AbortSignal): Promise<{ status?: number; text: string; why?: Why }> {
  try {
    const response = await fetch(url.replace(/^ws/, "http"), {
      signal,
      redirect: "manual",
      headers: { Connection: "close" }, // or Node would keep it for the next one
    });
    const { status } = response;
    const text = status === 400 ? await response.text() : "";
    const why = /\bHTTPS\b/.test(text) ? scheme("wss") : notUpgraded(status).why;
    return { status, text, why };
  } catch (error) {
    const why = namedBy(error);
    return { text: textOfAll(error), ...(why && { why }) };
  }
}

function namedBy(error: unknown): Why | undefined {
  const text = textOfAll(error);
  const [code] = /\b(?:E[A-Z_]{4,}|[A-Z]+(?:_[A-Z0-9]+)+)\b/.exec(text) ?? [];
  return words.find(([named]) => named.test(text))?.[1](code ? ` (${code})` : "");
}

/** An error and its causes. */
function textOfAll(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = "code" in error ? `${error.code} ` : "";
  return `${error.name} ${code}${error.message}${error.cause === undefined ? "" : ` ${textOfAll(error.cause)}`}`;
}
