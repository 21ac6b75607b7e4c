import type { Context, ExecutionContext } from "hono";
import type { App } from "../app.ts";
import { assertFanOut } from "../consume/continuation.ts";
import type { Binding } from "../consume/handler.ts";
import { type InvocationOptions, invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { Place } from "../consume/places.ts";
import type { InvocationReport } from "../consume/report.ts";
import { covers } from "../define/subject.ts";
import { type Duration, toMs } from "../duration.ts";
import { textOf } from "../errors.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import { assertLoggedIn, type Connection, disconnect } from "../nats/connection.ts";
import { notUpgraded } from "../nats/failure.ts";
import { hasToRelease, type ReleaseReport, release } from "../schedule/release.ts";
import { createKicks } from "./kick.ts";
import {
  connectWith,
  logJson,
  placeIn,
  reported,
  reportedOnce,
  reportedRelease,
  type Settings,
  tokensIn,
} from "./settings.ts";

export interface ServeOptions<Env extends Settings = Settings> extends SurfaceOptions {
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these allow */
  concurrency?: number;
  /**
   * The time that one cron invocation may take; Workers end it after 15 minutes. @default "50s"; with `linger:
   * "until-budget"` "65s", so that under a cron of every minute the next one is there before this one leaves. Where the
   * server does not release schedules by itself (before 2.12) each invocation does, for as long, or 65 seconds
   */
  budget?: Duration;
  /** What an invocation does when nothing is left: Workers do not bill the time that it waits. @default "drain" */
  linger?: Linger;
  /**
   * After a publish over HTTP, its consumers run once in the afterlife of that request, for as long as Workers let it go on
   * (30 seconds): cron triggers are only the safety net then. The answer does not wait for it, nor fail with it. One kick
   * is under way in an isolate; what is published meanwhile is covered by one more after it. @default false
   */
  kick?: boolean;
  /**
   * Called at the end of an invocation that leaves something to do: starts another one for each of `places`, once, by
   * sending each to a queue whose consumer is this Worker. How many there are is decided from what is left, within the app's
   * `fanOut`. What it answers is waited for, for a tenth of the time and a second at most; what it throws is in the report.
   * @default nobody goes on before the next tick
   */
  onMore?(places: readonly Place[], env: Env, report: InvocationReport): unknown;
}

const host = "cloudflare-workers";

/** Under a cron of every minute the next one is there before this one leaves. */
const untilNextTickMs = 65_000;

/** Workers end what is left of a request 30 seconds after its answer, at the earliest after it came; less time to be over by then. */
const afterlifeMs = 28_000;

/** The handlers of a Worker, for `export default`. */
export interface WorkerHandlers {
  fetch(request: Request, env: Settings, ctx: ExecutionContext): Promise<Response>;
  scheduled(controller: { cron: string; scheduledTime: number }, env: Settings, ctx: ExecutionContext): Promise<void>;
  /** Goes on with what other invocations left: each message's body is a place of `onMore`. */
  queue(batch: { readonly messages: readonly { readonly body: unknown }[] }, env: Settings): Promise<void>;
}

/**
 * Serves an app as a Cloudflare Worker: `fetch` is its HTTP surface, and each cron trigger runs its consumers once.
 * Connections are never shared between requests, which workerd does not allow.
 * @throws SortieError `invalid-option` for `onMore` where the app has no `fanOut`.
 * @example
 * export default serve(app);
 */
export function serve<Env extends Settings = Settings>(
  app: App,
  {
    linger = "drain",
    concurrency = Infinity,
    kick = false,
    onMore,
    rateLimit,
    cors,
    ...options
  }: ServeOptions<Env> = {},
): WorkerHandlers {
  const { budget = linger === "until-budget" ? untilNextTickMs : "50s" } = options;
  const budgetMs = toMs(budget, "budget");
  const releaseMs = options.budget === undefined ? untilNextTickMs : budgetMs;
  lingerMs(linger); // a malformed one is to be known at the deploy
  const { streams, bindings, fanOut } = app;
  assertFanOut(fanOut, onMore);
  const open = openUpgraded;
  const schedules = streams.some((stream) => stream.schedules);
  const kicks = createKicks<Binding>((error) => logJson({ event: "kick-failed", error: textOf(error) }));
  const http = createHttp(app, {
    connect: (c, ms) => connectWith(c.env as Settings, ms, { open }),
    tokens: (c) => tokensIn(c.env as Settings),
    address: (c) => c.req.header("CF-Connecting-IP"), // which Cloudflare writes itself
    limit: limitOf,
    run: (c, due) => reported(afterwards(c, invokeIn(c.env as Env, { bindings: due, deadline: triggeredUntil() }))),
    release: (c) => afterwards(c, releaseOnce(c.env as Settings, triggeredUntil())),
    rateLimit,
    ...(cors && { cors }),
    ...(kick && { onPublished }),
  });

  /** Somebody who triggers by URL may hang up, which leaves no more than the afterlife. */
  function triggeredUntil(): number {
    return Date.now() + Math.min(budgetMs, afterlifeMs);
  }

  function onPublished(c: Context, subject: string, began: number): void {
    const wanted = bindings.filter(({ consumer }) => consumer.filters.some((filter) => covers(filter, subject)));
    const deadline = began + afterlifeMs;
    const run = (due: readonly Binding[]) =>
      reported(invokeIn(c.env as Env, { bindings: due, deadline }, "sortie-kick"));
    c.executionCtx.waitUntil(kicks.kick(wanted, deadline, run));
  }

  function invokeIn(
    env: Env,
    how: Pick<InvocationOptions, "deadline"> & Partial<InvocationOptions>,
    name?: string,
  ): Promise<InvocationReport> {
    return invoke({
      streams,
      bindings,
      connect: (ms) => connectWith(env, ms, { open, ...(name && { name }) }),
      concurrency,
      host,
      fanOut,
      onMore: onMore && ((places, report) => onMore(places, env, report)),
      log: logJson,
      ...how,
    });
  }

  async function releaseOnce(env: Settings, deadline: number): Promise<ReleaseReport> {
    const connection = await connectWith(env, (deadline - Date.now()) / 4, { open, name: "sortie-release" });
    try {
      return await reportedRelease(release(connection, streams, { deadline }));
    } catch (error) {
      await assertLoggedIn(connection);
      throw error;
    } finally {
      disconnect(connection);
    }
  }

  /** Beside the consumers, until the next tick does: a Worker bills no waiting. */
  async function releaseIn(env: Settings, beside: Connection): Promise<void> {
    const deadline = Date.now() + releaseMs;
    // the invocation may be over, and its connection closed, before that is answered
    if (!(await hasToRelease(beside, streams, releaseMs / 4).catch(() => true))) return;
    const connection = await connectWith(env, releaseMs / 4, { open, name: "sortie-release" });
    try {
      await reportedRelease(release(connection, streams, { deadline, lingerMs: Infinity }));
    } finally {
      disconnect(connection);
    }
  }

  return {
    fetch: async (request, env, ctx) => http.fetch(request, env, ctx),
    async scheduled(_controller, env) {
      const deadline = Date.now() + budgetMs;
      let releasing: Promise<unknown> | undefined;
      const connectAndRelease = async (ms: number) => {
        const connection = await connectWith(env, ms, { open });
        releasing = schedules ? releaseIn(env, connection) : undefined;
        releasing?.catch(() => {}); // told at the end
        return connection;
      };
      try {
        await reported(invokeIn(env as Env, { deadline, linger, connect: connectAndRelease }));
      } finally {
        await releasing;
      }
    },
    async queue({ messages }, env) {
      const places = messages.flatMap(({ body }) => placeIn(body) ?? []);
      const goOn = (place: Place) => invokeIn(env as Env, { deadline: Date.now() + budgetMs, place });
      await Promise.all(places.map((place) => reportedOnce(goOn(place))));
    },
  };
}

/** Goes on to its end when whoever asked for it has hung up. */
function afterwards<T>(c: Context, work: Promise<T>): Promise<T> {
  c.executionCtx.waitUntil(work.catch(() => {}));
  return work;
}

/** What the binding `SORTIE_RATE_LIMIT` says, where there is one: it counts for all isolates of a location, over 10 s or 60. */
async function limitOf(c: Context, caller: string): Promise<number | undefined> {
  const { SORTIE_RATE_LIMIT: binding } = c.env as {
    SORTIE_RATE_LIMIT?: { limit(options: { key: string }): Promise<{ success: boolean }> };
  };
  if (!binding) return undefined;
  return (await binding.limit({ key: caller })).success ? 0 : 10_000;
}

/**
 * A WebSocket by way of `fetch`, which alone can be aborted: workerd keeps an invocation alive for as long as a peer does
 * not answer the close of a `new WebSocket()`.
 */
async function openUpgraded(url: string, signal: AbortSignal): Promise<WebSocket> {
  const response = await fetch(url.replace(/^ws/, "http"), { headers: { Upgrade: "websocket" }, signal });
  const { webSocket } = response as Response & { webSocket?: (WebSocket & { accept(): void }) | null };
  if (!webSocket) throw notUpgraded(response.status);
  webSocket.accept();
  return webSocket;
}
