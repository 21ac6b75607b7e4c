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
import { releaseOf, type ScheduleOptions, scheduled } from "../schedule/schedule.ts";
import { createSchedules, type ListOptions, type Schedules } from "../schedule/schedules.ts";
import { timeOf, type When } from "../schedule/when.ts";
import { problem, problemOf, RequestError } from "./problem.ts";

export interface HttpOptions {
  /** Opens the connection that one request uses, within `ms`. */
  connect(c: Context, ms: number): Promise<Connection>;
  /** The bearer tokens; without one what it is for cannot be done. */
  tokens(c: Context): Tokens;
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

/**
 * The HTTP surface of an app: `POST /publish/{subject}`, with `?delay=30s` or `?at=<RFC 3339>` for later, and `/schedules` for
 * those who look after what is released later.
 */
export function createHttp(app: App, options: HttpOptions): Hono {
  const http = new Hono();
  http.onError((error, c) => problemOf(c, error));
  http.notFound((c) =>
    problem(
      c,
      "not-found",
      `There is nothing at ${c.req.method} ${c.req.path}; messages go to POST /publish/{subject}, and schedules are at /schedules`,
    ),
  );

  const onMethodNotAllowed = (c: Context, methods: string[]) => {
    c.header("Allow", methods.join(", "));
    return problem(c, "method-not-allowed", `Expected ${methods.join(" or ")}, got ${c.req.method}`);
  };
  http.use(methodNotAllowed({ app: http, onMethodNotAllowed }));

  const authorized = (scope: Scope): MiddlewareHandler => {
    const { token: tokenIn, setting } = scopes[scope];
    return async (c, next) => {
      const token = options.tokens(c)[tokenIn];
      if (!token) return problem(c, "not-configured", `This needs the secret ${setting}; it is not set`);
      const given = /^Bearer +(\S+)$/i.exec(c.req.header("Authorization") ?? "")?.[1] ?? "";
      if (await timingSafeEqual(given, token)) return next();
      c.header("WWW-Authenticate", `Bearer realm="${scope}"`);
      return problem(
        c,
        "unauthorized",
        `Expected the header \`Authorization: Bearer <token>\` with the token of ${setting}`,
      );
    };
  };
  const limit = bodyLimit({
    maxSize: maxBodyBytes,
    onError: (c) => problem(c, "payload-too-large", `Expected a payload of ${maxBodyBytes} bytes at most`),
  });

  /** Does something over a connection of the request's own, within its time. */
  async function connected<T>(
    c: Context,
    act: (connection: Connection, leftMs: () => number) => Promise<T>,
  ): Promise<T> {
    const requestMs = Math.min(maxRequestMs, options.remaining?.(c) ?? Infinity);
    const deadline = Date.now() + requestMs;
    const connection = await options.connect(c, requestMs / 2);
    try {
      return await act(connection, () => (deadline - Date.now()) * 0.8);
    } catch (error) {
      await assertLoggedIn(connection);
      throw error;
    } finally {
      disconnect(connection);
    }
  }

  http.post("/publish/:subject", authorized("publish"), limit, async (c) => {
    const began = Date.now();
    const { delay, at } = assertQuery(c, "delay", "at");
    if (delay !== undefined && at !== undefined) throw malformed("Expected either delay or at, got both");
    const subject = c.req.param("subject");
    const stream = streamFor(app.streams, subject);
    assertJson(c);
    const key = c.req.header("Idempotency-Key");
    if (key !== undefined && !/^[\x21-\x7e]{1,255}$/.test(key))
      throw malformed("Expected Idempotency-Key to have 1 to 255 visible ASCII characters without spaces");
    const outgoing = await preparePayload(app.streams, subject, new Uint8Array(await c.req.arrayBuffer()));
    return connected(c, async (connection, leftMs) => {
      const when = whenOf(delay, at);
      if (when) {
        const id = key ?? crypto.randomUUID();
        const { at, store } = scheduled(connection, { ...outgoing, id: key }, stream, { id, ...when }, began);
        const stored = await store(leftMs());
        const first = stored.duplicate ? await storedAs(connection, stored, leftMs() / 2) : undefined;
        const release = first && releaseOf(first);
        if (release && !isSame({ subject: release.target, data: first.data }, outgoing)) return reused(c, stored);
        // asked for again after it was cancelled, or released, it is neither made again nor said to wait
        const [schedules] = stored.duplicate ? [createSchedules(connection, app.streams, { ms: leftMs() })] : [];
        const known = await schedules?.get(id, { stream: stream.name });
        const time = known?.at ?? new Date(release?.at ?? at);
        return c.json({ schedule: { id, at: time.toISOString(), ...(known && { state: known.state }) } }, 202);
      }
      const published = await publish(connection, { ...outgoing, id: key }, leftMs());
      const first = published.duplicate ? await storedAs(connection, published, leftMs() / 2) : undefined;
      if (first && !isSame(first, outgoing)) return reused(c, published);
      options.onPublished?.(c, subject, began);
      return c.json(published, 202);
    });
  });

  const managed = authorized("schedules");
  const onSchedules = <T>(c: Context, act: (schedules: Schedules) => Promise<T>) =>
    connected(c, (connection, leftMs) => act(createSchedules(connection, app.streams, { ms: leftMs() })));
  const whereOf = (c: Context) => ({ stream: assertQuery(c, "stream").stream });
  const unknown = (c: Context, id: string) => problem(c, "schedule-unknown", `There is no schedule "${id}"`);

  http.get("/schedules", managed, async (c) => {
    const { limit, from, to, ...others } = assertQuery(c, "stream", "prefix", "from", "to", "limit", "after");
    const time = (name: string, text?: string) => (text === undefined ? undefined : timeOf(text, name, "Schedules"));
    const asked = { ...others, from: time("from", from), to: time("to", to), limit: limit && Number(limit) };
    return c.json(await onSchedules(c, (schedules) => schedules.list(asked as ListOptions)));
  });
  http.post("/schedules", managed, limit, async (c) => {
    assertQuery(c);
    assertJson(c);
    const { subject, data, ...when } = await bodyOf(c);
    if (typeof subject !== "string") throw malformed(`Expected subject to be a string, got ${JSON.stringify(subject)}`);
    const made = await onSchedules(c, (schedules) =>
      schedules.schedule(subject, data, when as unknown as ScheduleOptions),
    );
    return c.json({ schedule: made }, 201);
  });
  http.get("/schedules/:id", managed, async (c) => {
    const [id, where] = [c.req.param("id"), whereOf(c)];
    const schedule = await onSchedules(c, (schedules) => schedules.get(id, where));
    return schedule ? c.json({ schedule }) : unknown(c, id);
  });
  http.delete("/schedules/:id", managed, (c) => settled(c, "cancel"));
  http.post("/schedules/:id/fire", managed, (c) => settled(c, "fireNow"));
  http.post("/schedules/:id/pause", managed, (c) => settled(c, "pause"));
  http.post("/schedules/:id/resume", managed, (c) => settled(c, "resume"));
  return http;

  async function settled(c: Context, what: "cancel" | "fireNow" | "pause" | "resume") {
    const [id, where] = [c.req.param("id") ?? "", whereOf(c)];
    const result = await onSchedules(c, (schedules) => schedules[what](id, where));
    if (result === "unknown") return unknown(c, id);
    if (result === "already-fired")
      return problem(c, "already-fired", `Schedule "${id}" was released, or is about to be`);
    if (result === "cancelled" && what !== "cancel")
      return problem(c, "schedule-unknown", `Schedule "${id}" was cancelled`);
    return c.json({ id, result });
  }
}

/** The tokens that let somebody in, for what each is. */
export interface Tokens {
  /** For `POST /publish/{subject}`. */
  readonly publish?: string | undefined;
  /** For all of `/schedules`. */
  readonly schedules?: string | undefined;
}

type Scope = keyof Tokens;

const scopes = {
  publish: { token: "publish", setting: "SORTIE_PUBLISH_TOKEN" },
  schedules: { token: "schedules", setting: "SORTIE_SCHEDULES_TOKEN" },
} as const satisfies Record<Scope, { token: Scope; setting: string }>;

function malformed(detail: string): RequestError {
  return new RequestError("invalid-request", detail);
}

/** The query's parameters. Throws `invalid-request` for any but these. */
function assertQuery<Name extends string>(c: Context, ...names: readonly Name[]): { [K in Name]?: string } {
  const query = c.req.query();
  const unknown = Object.keys(query).filter((name) => !(names as readonly string[]).includes(name));
  const known = names.length > 0 ? `no query parameters but ${names.join(" or ")}` : "no query parameters";
  if (unknown.length > 0) throw malformed(`Expected ${known}, got ${unknown.join(", ")}`);
  return query as { [K in Name]?: string };
}

/** Throws what is answered with 415 for anything else. */
function assertJson(c: Context): void {
  const type = c.req.header("Content-Type") ?? "none";
  if (/^application\/(.+\+)?json(;|$)/i.test(type)) return;
  throw new RequestError("unsupported-media-type", `Expected Content-Type application/json, got ${type}`);
}

async function bodyOf(c: Context): Promise<Record<string, unknown>> {
  const body: unknown = await c.req.json().catch(() => undefined);
  if (typeof body === "object" && body !== null && !Array.isArray(body)) return body as Record<string, unknown>;
  throw malformed('Expected a JSON object such as {"subject":"orders.reminder","data":{},"in":"1h"}');
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
