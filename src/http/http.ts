import { type Context, Hono, type MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { methodNotAllowed } from "hono/method-not-allowed";
import { timingSafeEqual } from "hono/utils/buffer";
import type { App } from "../app.ts";
import type { Duration } from "../duration.ts";
import { assertLoggedIn, type Connection, disconnect } from "../nats/connection.ts";
import { storedMessage } from "../nats/stored-message.ts";
import { type Outgoing, preparePayload, streamFor } from "../publish/outgoing.ts";
import { type Published, publish } from "../publish/publish.ts";
import { releaseTimeOf, scheduled } from "../schedule/schedule.ts";
import type { When } from "../schedule/when.ts";
import { problem, problemOf } from "./problem.ts";

export interface HttpOptions {
  /** Opens the connection that one request uses, within `ms`. */
  connect(c: Context, ms: number): Promise<Connection>;
  /** The bearer token that publishing takes; without one nothing can be published. */
  publishToken(c: Context): string | undefined;
  /** Milliseconds that the platform leaves to the request. @default unlimited */
  remaining?(c: Context): number;
  /**
   * Told of each message that is stored, before the answer leaves; `began` is when its request came, in epoch milliseconds.
   * What it starts must not be waited for, and it must not throw.
   */
  onPublished?(c: Context, subject: string, began: number): void;
}

const maxBodyBytes = 1024 * 1024; // nats-server's own max_payload, unless configured
const maxRequestMs = 10_000;

/** The HTTP surface of an app: `POST /publish/{subject}`, with `?delay=30s` or `?at=<RFC 3339>` for later. */
export function createHttp(app: App, options: HttpOptions): Hono {
  const http = new Hono();
  http.onError((error, c) => problemOf(c, error));
  http.notFound((c) =>
    problem(
      c,
      "not-found",
      `There is nothing at ${c.req.method} ${c.req.path}; messages go to POST /publish/{subject}`,
    ),
  );

  const onMethodNotAllowed = (c: Context, methods: string[]) => {
    c.header("Allow", methods.join(", "));
    return problem(c, "method-not-allowed", `Expected ${methods.join(" or ")}, got ${c.req.method}`);
  };
  http.use(methodNotAllowed({ app: http, onMethodNotAllowed }));

  const authorized: MiddlewareHandler = async (c, next) => {
    const token = options.publishToken(c);
    if (!token) return problem(c, "not-configured", "Publishing needs the secret SORTIE_PUBLISH_TOKEN; it is not set");
    const given = /^Bearer +(\S+)$/i.exec(c.req.header("Authorization") ?? "")?.[1] ?? "";
    if (await timingSafeEqual(given, token)) return next();
    c.header("WWW-Authenticate", 'Bearer realm="publish"');
    return problem(
      c,
      "unauthorized",
      "Expected the header `Authorization: Bearer <token>` with the token for publishing",
    );
  };
  const limit = bodyLimit({
    maxSize: maxBodyBytes,
    onError: (c) => problem(c, "payload-too-large", `Expected a payload of ${maxBodyBytes} bytes at most`),
  });
  http.post("/publish/:subject", authorized, limit, async (c) => {
    const began = Date.now();
    const { delay, at, ...others } = c.req.query();
    const unknown = Object.keys(others);
    if (unknown.length > 0)
      return problem(c, "invalid-request", `Expected no query parameters but delay or at, got ${unknown.join(", ")}`);
    if (delay !== undefined && at !== undefined)
      return problem(c, "invalid-request", "Expected either delay or at, got both");
    const subject = c.req.param("subject");
    const stream = streamFor(app.streams, subject);
    const type = c.req.header("Content-Type") ?? "none";
    if (!/^application\/(.+\+)?json(;|$)/i.test(type)) {
      return problem(c, "unsupported-media-type", `Expected Content-Type application/json, got ${type}`);
    }
    const key = c.req.header("Idempotency-Key");
    if (key !== undefined && !/^[\x21-\x7e]{1,255}$/.test(key)) {
      return problem(
        c,
        "invalid-request",
        "Expected Idempotency-Key to have 1 to 255 visible ASCII characters without spaces",
      );
    }
    const outgoing = await preparePayload(app.streams, subject, new Uint8Array(await c.req.arrayBuffer()));

    const requestMs = Math.min(maxRequestMs, options.remaining?.(c) ?? Infinity);
    const deadline = Date.now() + requestMs;
    const connection = await options.connect(c, requestMs / 2);
    const leftMs = () => (deadline - Date.now()) * 0.8;
    try {
      const when = whenOf(delay, at);
      if (when) {
        const id = key ?? crypto.randomUUID();
        const { at, messages } = scheduled(connection, { ...outgoing, id: key }, stream, { id, ...when }, began);
        const [schedule] = await Promise.all(messages.map((message) => publish(connection, message, leftMs())));
        const first = schedule?.duplicate ? await storedAs(connection, schedule, leftMs() / 2) : undefined;
        if (schedule && first && !isSame(first, messages[0])) return reused(c, schedule);
        return c.json({ schedule: { id, at: ((first && releaseTimeOf(first)) ?? at).toISOString() } }, 202);
      }
      const published = await publish(connection, { ...outgoing, id: key }, leftMs());
      const first = published.duplicate ? await storedAs(connection, published, leftMs() / 2) : undefined;
      if (first && !isSame(first, outgoing)) return reused(c, published);
      options.onPublished?.(c, subject, began);
      return c.json(published, 202);
    } catch (error) {
      await assertLoggedIn(connection);
      throw error;
    } finally {
      disconnect(connection);
    }
  });
  return http;
}

/** When a message is to be released; undefined for at once. */
function whenOf(delay: string | undefined, at: string | undefined): When | undefined {
  if (at !== undefined) return { at };
  if (delay === undefined) return undefined;
  return { in: (/^\d+$/.test(delay) ? Number(delay) : delay) as Duration }; // looked at when it is used
}

/** What is stored under a message id; undefined where it is gone, or cannot be read. */
async function storedAs(connection: Connection, { stream, sequence }: Published, ms: number) {
  try {
    return await storedMessage(connection, stream, { seq: sequence }, ms, "reading the first message");
  } catch {
    return undefined;
  }
}

function isSame(stored: { subject: string; data: Uint8Array }, outgoing: Outgoing | undefined): boolean {
  return stored.subject === outgoing?.subject && `${stored.data}` === `${outgoing.payload}`;
}

function reused(c: Context, { stream, sequence }: Published) {
  return problem(
    c,
    "idempotency-key-reused",
    `This Idempotency-Key was used for another message of stream "${stream}" (sequence ${sequence}); expected a key of its own for each message`,
  );
}
