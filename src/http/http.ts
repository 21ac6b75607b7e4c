import { type Context, Hono, type MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { methodNotAllowed } from "hono/method-not-allowed";
import { timingSafeEqual } from "hono/utils/buffer";
import type { App } from "../app.ts";
import { assertLoggedIn, type Connection, disconnect } from "../nats/connection.ts";
import { managerOn } from "../nats/jetstream.ts";
import { within } from "../nats/within.ts";
import { type Outgoing, preparePayload, streamFor } from "../publish/outgoing.ts";
import { type Published, publish } from "../publish/publish.ts";
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

/** The HTTP surface of an app: `POST /publish/{subject}`. */
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
    const unknown = Object.keys(c.req.query());
    if (unknown.length > 0)
      return problem(c, "invalid-request", `Expected no query parameters, got ${unknown.join(", ")}`);
    const subject = c.req.param("subject");
    streamFor(app.streams, subject);
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
    try {
      const published = await publish(connection, { ...outgoing, id: key }, (deadline - Date.now()) * 0.8);
      if (published.duplicate && (await isAnother(connection, published, outgoing, (deadline - Date.now()) / 2))) {
        return problem(
          c,
          "idempotency-key-reused",
          `This Idempotency-Key was used for another message of stream "${published.stream}" (sequence ${published.sequence}); expected a key of its own for each message`,
        );
      }
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

/** Whether what is stored under a message id differs from what was to be; false where it is gone, or cannot be read. */
async function isAnother(connection: Connection, { stream, sequence }: Published, outgoing: Outgoing, ms: number) {
  try {
    const jsm = await managerOn(connection);
    const stored = await within(ms, "reading the first message", jsm.streams.getMessage(stream, { seq: sequence }));
    return stored !== null && !(stored.subject === outgoing.subject && `${stored.data}` === `${outgoing.payload}`);
  } catch {
    return false;
  }
}
