import { type Context, Hono } from "hono";
import { cors } from "hono/cors";
import { methodNotAllowed } from "hono/method-not-allowed";
import type { App } from "../app.ts";
import type { Binding } from "../consume/handler.ts";
import type { InvocationReport } from "../consume/report.ts";
import { schedulesStream } from "../define/own.ts";
import { schemaOf } from "../define/stream.ts";
import type { Duration } from "../duration.ts";
import { SortieError, shown } from "../errors.ts";
import { assertLoggedIn, type Connection, disconnect } from "../nats/connection.ts";
import { storedMessage } from "../nats/stored-message.ts";
import { type Outgoing, preparePayload } from "../publish/outgoing.ts";
import { isOutrun, type Published, publish } from "../publish/publish.ts";
import { scheduleSubject, tellsOfAnother } from "../schedule/pending.ts";
import type { ReleaseReport } from "../schedule/release.ts";
import { releaseOf, type ScheduleOptions, scheduled } from "../schedule/schedule.ts";
import { createSchedules, type ListOptions, type Schedules } from "../schedule/schedules.ts";
import { storedSchedule } from "../schedule/stored-schedule.ts";
import { timeOf, tokenOf, type When } from "../schedule/when.ts";
import { type AdmissionOptions, createAdmission } from "./admission.ts";
import { bodyOf, objectOf } from "./body.ts";
import { healthOf } from "./health.ts";
import { openApiOf } from "./openapi.ts";
import { problem, problemOf, RequestError } from "./problem.ts";
import type { RateLimitOptions } from "./rate-limit.ts";
import { publicStream } from "./subjects.ts";
import { isVisible, longestWindowMs } from "./webhook.ts";

/** What an app's HTTP surface lets be chosen, on every platform. */
export interface SurfaceOptions {
  /** How often each caller may ask: who shows a token for itself, all others by their address. @default as often as they like */
  rateLimit?: RateLimitOptions;
  /**
   * The origins whose pages may read what is answered, such as `"https://app.example.com"`, or `"*"` for all. Credentials that
   * a browser sends by itself are never asked for. @default none
   */
  cors?: { origins: readonly string[] };
}

export interface HttpOptions extends AdmissionOptions, Pick<SurfaceOptions, "cors"> {
  /** Opens the connection that one request uses, within `ms`. */
  connect(c: Context, ms: number): Promise<Connection>;
  /** Milliseconds that the platform leaves to the request. @default unlimited */
  remaining?(c: Context): number;
  /**
   * Told of each message that is stored, before the answer leaves; `began` is when its request came, in epoch milliseconds.
   * What it starts must not be waited for, and it must not throw.
   */
  onPublished?(c: Context, subject: string, began: number): void;
  /** One invocation of these consumers, within what the platform leaves to a request. @default there is no `/run` */
  run?(c: Context, bindings: readonly Binding[]): Promise<InvocationReport>;
  /** One scheduler invocation, within the same. @default there is no `/release` */
  release?(c: Context): Promise<ReleaseReport>;
}

const maxRequestMs = 10_000;

/**
 * The HTTP surface of an app: `POST /publish/{subject}`, with `?delay=30s` or `?at=<RFC 3339>` for later, `/schedules` for those
 * who look after what is released later, `POST /run/{consumer}` and `POST /release` for whoever has a clock, and `GET /health`
 * and `GET /openapi.json`.
 * @throws SortieError `invalid-option` for an origin that is none, or a malformed rate limit.
 */
export function createHttp(app: App, options: HttpOptions): Hono {
  const http = new Hono();
  const admission = createAdmission(options);
  http.onError((error, c) => problemOf(c, error));
  http.notFound((c) =>
    problem(
      c,
      "not-found",
      `There is nothing at ${c.req.method} ${c.req.path}; messages go to POST /publish/{subject}, and schedules are at /schedules`,
    ),
  );
  http.use(async (c, next) => {
    await next();
    c.res.headers.set("Cache-Control", "no-store");
    c.res.headers.set("X-Content-Type-Options", "nosniff");
  });
  if (options.cors) http.use(corsFor(options.cors));

  const onMethodNotAllowed = (c: Context, methods: string[]) => {
    c.header("Allow", methods.join(", "));
    return problem(c, "method-not-allowed", `Expected ${methods.join(" or ")}, got ${c.req.method}`);
  };
  http.use(methodNotAllowed({ app: http, onMethodNotAllowed }));
  http.use((c, next) => {
    assertPath(c);
    return next();
  });

  const requestMsOf = (c: Context) => Math.min(maxRequestMs, options.remaining?.(c) ?? Infinity);

  /** Does something over a connection of the request's own, within its time. */
  async function connected<T>(
    c: Context,
    act: (connection: Connection, leftMs: () => number) => Promise<T>,
  ): Promise<T> {
    const requestMs = requestMsOf(c);
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

  /** A message as whoever may publish it brings it; `began` is when its request came. */
  async function received(c: Context, subject: string) {
    const payload = () => {
      assertJson(c);
      return bodyOf(c.req.raw, requestMsOf(c));
    };
    const isSigned = c.req.header("Authorization") === undefined && c.req.header("webhook-signature") !== undefined;
    if (isSigned) {
      const rememberedMs = app.streams.find((stream) => schemaOf(stream, subject))?.duplicateWindowMs ?? 0;
      // the last of two that is let in is stored within a request's time, and has to be a duplicate of the first even then
      const windowMs = Math.min(longestWindowMs, (rememberedMs - maxRequestMs) / 2);
      const signed = await admission.bySignature(c, subject, windowMs, payload);
      assertQuery(c); // nobody has signed that it is to be released later
      if (c.req.header("Idempotency-Key") !== undefined)
        throw malformed("Expected no Idempotency-Key beside webhook-id, which is the message's id");
      return {
        stream: publicStream(app, subject, false),
        key: ownId("webhook-id", signed.id),
        payload: signed.payload,
      };
    }
    const { grants } = await admission.byToken(c, "publish", subject);
    const { delay, at } = assertQuery(c, "delay", "at");
    if (delay !== undefined && at !== undefined) throw malformed("Expected either delay or at, got both");
    const tellsAll = grants.some(({ subjects }) => subjects === undefined);
    const stream = publicStream(app, subject, tellsAll);
    assertJson(c);
    const given = c.req.header("Idempotency-Key");
    const key = given === undefined ? undefined : ownId("Idempotency-Key", given);
    return { stream, key, when: whenOf(delay, at), payload: await payload() };
  }

  /** An id that a caller may give its message: none that Sortie derives, or the message it is for would be a duplicate. */
  function ownId(header: string, id: string): string {
    if (!isVisible(id)) throw malformed(`Expected ${header} to have 1 to 255 visible ASCII characters without spaces`);
    const derived = ["sortie", ...app.streams.map(({ name }) => name)].find((name) => id.startsWith(`${name}.`));
    if (derived !== undefined)
      throw malformed(`Expected ${header} not to begin with "${derived}.", as Sortie's own do`);
    return id;
  }

  http.post("/publish/:subject", async (c) => {
    const began = Date.now();
    const subject = c.req.param("subject");
    const { stream, key, when, payload } = await received(c, subject);
    const outgoing = await preparePayload(app.streams, subject, payload);
    return connected(c, async (connection, leftMs) => {
      if (when) {
        const id = key ?? crypto.randomUUID();
        const schedules = createSchedules(connection, app.streams, { ms: leftMs() });
        // a key is good for one message, and neither replaces nor moves what waits
        const asBefore = async () => {
          const before = await schedules.get(id, { stream: stream.name });
          if (!before) return undefined;
          let isAnother = before.recurring !== undefined || !isSameValue(before, outgoing);
          if (before.subject === undefined) {
            // what is over is not made again while it is remembered
            const which = { last_by_subj: scheduleSubject(stream.name, tokenOf(id)) };
            const word = await storedSchedule(connection, schedulesStream, which, leftMs(), "reading a schedule");
            isAnother = word !== undefined && tellsOfAnother(word, outgoing);
          }
          if (isAnother) return taken(c, stream.name);
          return c.json({ schedule: { id, at: before.at.toISOString(), state: before.state } }, 202);
        };
        const before = key === undefined ? undefined : await asBefore();
        if (before) return before;
        const named = { id, ...when, isFirst: key !== undefined };
        const { at, store } = scheduled(connection, { ...outgoing, id: key }, stream, named, began);
        let stored: Published;
        try {
          stored = await store(leftMs());
        } catch (error) {
          const meanwhile = isOutrun(error) ? await asBefore() : undefined;
          if (meanwhile) return meanwhile;
          throw error;
        }
        const first = stored.duplicate ? await storedAs(connection, stored, leftMs() / 2) : undefined;
        const release = first && releaseOf(first);
        if (release && !isSame({ subject: release.target, data: first.data }, outgoing)) return reused(c, stored);
        // asked for again after it was cancelled, or released, it is neither made again nor said to wait
        const known = stored.duplicate ? await schedules.get(id, { stream: stream.name }) : undefined;
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

  const onSchedules = <T>(c: Context, act: (schedules: Schedules) => Promise<T>) =>
    connected(c, (connection, leftMs) => act(createSchedules(connection, app.streams, { ms: leftMs() })));
  const whereOf = (c: Context) => ({ stream: assertQuery(c, "stream").stream });
  const unknown = (c: Context, id: string) => problem(c, "schedule-unknown", `There is no schedule "${id}"`);

  http.get("/schedules", async (c) => {
    await admission.byToken(c, "schedules");
    const { limit, from, to, ...others } = assertQuery(c, "stream", "prefix", "from", "to", "limit", "after");
    const time = (name: string, text?: string) => (text === undefined ? undefined : timeOf(text, name, "Schedules"));
    const asked = { ...others, from: time("from", from), to: time("to", to), limit: limit && Number(limit) };
    return c.json(await onSchedules(c, (schedules) => schedules.list(asked as ListOptions)));
  });
  http.post("/schedules", async (c) => {
    await admission.byToken(c, "schedules");
    assertQuery(c);
    assertJson(c);
    const { subject, data, ...when } = await objectOf(c.req.raw, requestMsOf(c));
    if (typeof subject !== "string") throw malformed(`Expected subject to be a string, got ${shown(subject)}`);
    publicStream(app, subject, true);
    const made = await onSchedules(c, (schedules) =>
      schedules.schedule(subject, data, when as unknown as ScheduleOptions),
    );
    return c.json({ schedule: made }, 201);
  });
  http.get("/schedules/:id", async (c) => {
    await admission.byToken(c, "schedules");
    const [id, where] = [c.req.param("id"), whereOf(c)];
    const schedule = await onSchedules(c, (schedules) => schedules.get(id, where));
    return schedule ? c.json({ schedule }) : unknown(c, id);
  });
  http.delete("/schedules/:id", (c) => settled(c, "cancel"));
  http.post("/schedules/:id/fire", (c) => settled(c, "fireNow"));
  http.post("/schedules/:id/pause", (c) => settled(c, "pause"));
  http.post("/schedules/:id/resume", (c) => settled(c, "resume"));

  const { run, release } = options;
  if (run) {
    http.on(["GET", "POST"], "/run/:consumer", async (c) => {
      await triggered(c);
      return c.json(await run(c, [bindingOf(c)]));
    });
  }
  if (release) {
    http.on(["GET", "POST"], "/release", async (c) => {
      await triggered(c);
      assertQuery(c);
      return c.json(await release(c));
    });
  }

  http.get("/health", async (c) => {
    if (c.req.header("Authorization") === undefined) return c.json({ status: "ok" });
    await admission.byToken(c, "run");
    const health = await connected(c, (connection, leftMs) => healthOf(connection, app, leftMs()));
    if (health.status === "ok") return c.json(health);
    return c.json(health, 503, { "Retry-After": "30" });
  });
  http.get("/openapi.json", async (c) => {
    const { grants } = await admission.byAnyToken(c);
    return c.json(openApiOf(app, grants));
  });
  return http;

  /** Whoever has a clock: by POST, and with the secret of Vercel's cron, which sends nothing else, by GET. */
  async function triggered(c: Context): Promise<void> {
    const { grants } = await admission.byToken(c, "run");
    if (c.req.method === "POST" || (c.req.method === "GET" && grants.some((grant) => grant.for === "cron"))) return;
    c.header("Allow", "POST");
    throw new RequestError("method-not-allowed", `Expected POST, got ${c.req.method}`);
  }

  function bindingOf(c: Context): Binding {
    const { stream } = assertQuery(c, "stream");
    const name = c.req.param("consumer");
    const found = app.bindings.filter(
      ({ consumer }) => consumer.name === name && (stream === undefined || consumer.stream.name === stream),
    );
    const [binding] = found;
    if (!binding) throw new RequestError("consumer-unknown", "This app has no consumer of this name");
    if (found.length === 1) return binding;
    const all = found.map(({ consumer }) => `"${consumer.stream.name}"`).join(", ");
    throw malformed(`There is a consumer "${name}" of each of the streams ${all}: say which, by ?stream=`);
  }

  async function settled(c: Context, what: "cancel" | "fireNow" | "pause" | "resume") {
    await admission.byToken(c, "schedules");
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

/** Throws for escapes that stand for no text: they would be taken for it literally. */
function assertPath(c: Context): void {
  try {
    decodeURIComponent(new URL(c.req.url).pathname);
  } catch {
    throw malformed("Expected a path in UTF-8 with its escapes whole, as in /publish/notes.caf%C3%A9");
  }
}

/** Throws what is answered with 415 for anything else. */
function assertJson(c: Context): void {
  const type = c.req.header("Content-Type") ?? "none";
  if (/^application\/(.+\+)?json\s*(;|$)/i.test(type)) return;
  throw new RequestError("unsupported-media-type", `Expected Content-Type application/json, got ${type}`);
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

function isSameValue({ subject, data }: { subject?: string; data?: unknown }, outgoing: Outgoing): boolean {
  const sent: unknown = JSON.parse(new TextDecoder().decode(outgoing.payload));
  return subject === outgoing.subject && JSON.stringify(data) === JSON.stringify(sent);
}

function taken(c: Context, stream: string) {
  return problem(
    c,
    "idempotency-key-reused",
    `This Idempotency-Key is the id of another schedule of stream "${stream}"; expected a key of its own for each message`,
  );
}

function reused(c: Context, { stream, sequence }: Published) {
  return problem(
    c,
    "idempotency-key-reused",
    `This Idempotency-Key was used for another message of stream "${stream}" (sequence ${sequence}); expected a key of its own for each message`,
  );
}

/** Throws `invalid-option` for what is no origin: a browser would never send it. */
function corsFor(option: NonNullable<SurfaceOptions["cors"]>) {
  const { origins } = option;
  if (!Array.isArray(origins)) {
    throw new SortieError(
      "invalid-option",
      `cors: expected { origins: ["https://app.example.com"] }, got ${shown(option)}`,
    );
  }
  for (const origin of origins) {
    if (origin === "*" || (URL.canParse(origin) && new URL(origin).origin === origin)) continue;
    throw new SortieError(
      "invalid-option",
      `cors: expected origins such as "https://app.example.com", without a path, or "*", got ${shown(origin)}`,
    );
  }
  return cors({
    origin: origins.includes("*") ? "*" : [...origins],
    allowMethods: ["GET", "POST", "DELETE"],
    allowHeaders: ["Authorization", "Content-Type", "Idempotency-Key"],
    exposeHeaders: ["Allow", "Retry-After", "WWW-Authenticate"],
    maxAge: 600,
  });
}
