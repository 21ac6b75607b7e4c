import type { Context, ExecutionContext } from "hono";
import type { App } from "../app.ts";
import { assertFanOut } from "../consume/continuation.ts";
import type { Binding } from "../consume/handler.ts";
import { type InvocationOptions, invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { Place } from "../consume/places.ts";
import type { InvocationReport } from "../consume/report.ts";
import { covers } from "../define/subject.ts";
import type { Duration } from "../duration.ts";
import { SortieError, shown, textOf } from "../errors.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import { type Connection, disconnect } from "../nats/connection.ts";
import { shareConnection } from "../nats/shared.ts";
import { type CronJob, type Due, jobsByCron } from "./crons.ts";
import { createKicks } from "./kick.ts";
import { boundedBy, type PlanName, plans } from "./plans.ts";
import {
  assertConcurrency,
  budgetOf,
  connectWith,
  logJson,
  placeIn,
  releaseOver,
  reported,
  reportedOnce,
  type Settings,
  tokensIn,
} from "./settings.ts";
import { openUpgraded } from "./upgraded-socket.ts";

export interface ServeOptions<Env extends Settings = Settings> extends SurfaceOptions {
  /**
   * The plan of the Cloudflare account, which bounds an invocation. `"free"`, with its 10 ms of CPU and 50 subrequests: 40
   * messages, 5 of them at the same time, and 1 MiB in hand. `"paid"`: 48 MiB in hand, for a Worker has 128 MB. Messages
   * and bytes are shared out evenly to the consumers of an invocation. @default "paid"
   */
  plan?: PlanName;
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these and `plan` allow */
  concurrency?: number;
  /**
   * What each cron trigger of `wrangler.toml` starts, by its expression. One that is not among them fails, with an error in
   * the log. @default each starts all consumers, and releases
   */
  crons?: Readonly<Record<string, CronJob>>;
  /**
   * `viaHub` of `sortie/cloudflare/hub`: all goes over the connection of a Durable Object.
   * @default an invocation opens a connection of its own
   */
  hub?(env: Env, ms: number): Promise<Connection>;
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

/** Workers end what a cron trigger or a queue started then. */
const longestMs = 15 * 60_000;

/** The handlers of a Worker, for `export default`. */
export interface WorkerHandlers<Env extends Settings = Settings> {
  fetch(request: Request, env: Env, ctx: ExecutionContext): Promise<Response>;
  scheduled(controller: { cron: string; scheduledTime: number }, env: Env, ctx: ExecutionContext): Promise<void>;
  /** Goes on with what other invocations left: each message's body is a place of `onMore`. */
  queue(
    batch: { readonly messages: readonly { readonly body: unknown }[] },
    env: Env,
    ctx: ExecutionContext,
  ): Promise<void>;
}

/**
 * Serves an app as a Cloudflare Worker: `fetch` is its HTTP surface, and each cron trigger runs its consumers once. An
 * invocation has one connection, which is never shared with another one: workerd does not allow that.
 * @throws SortieError `invalid-option` for `onMore` where the app has no `fanOut`, for a budget that Workers do not give, and
 * for a consumer among `crons` that has no handler.
 * @example
 * export default serve(app, { plan: "free", crons: { "* * * * *": { consumers: [billing] }, "0 * * * *": "release" } });
 */
export function serve<Env extends Settings = Settings>(
  app: App,
  {
    linger = "drain",
    kick = false,
    plan = "paid",
    hub,
    crons,
    onMore,
    rateLimit,
    cors,
    ...options
  }: ServeOptions<Env> = {},
): WorkerHandlers<Env> {
  const { budget = linger === "until-budget" ? untilNextTickMs : "50s" } = options;
  const budgetMs = budgetOf(budget);
  assertPossible(plan, budgetMs);
  const releaseMs = options.budget === undefined ? untilNextTickMs : budgetMs;
  lingerMs(linger); // a malformed one is to be known at the deploy
  assertConcurrency(options.concurrency);
  const { streams, bindings, fanOut } = app;
  assertFanOut(fanOut, onMore);
  const jobOf = jobsByCron(app, crons);
  const kicks = createKicks<Binding>((error) => logJson({ event: "kick-failed", error: textOf(error) }));
  const requests = new WeakMap<Context, Connect>();
  const http = createHttp(app, {
    connect: (c, ms) => {
      const connect = connectingFor(c);
      requests.set(c, connect);
      return connect(ms);
    },
    tokens: (c) => tokensIn(c.env as Settings),
    address: (c) => c.req.header("CF-Connecting-IP"), // which Cloudflare writes itself
    limit: limitOf,
    run: (c, due) => {
      const how = { deadline: triggeredUntil(), connect: connectingFor(c) };
      return reported(afterwards(c, invokeIn(c.env as Env, due, how)));
    },
    release: (c) => afterwards(c, releaseOver(connectingFor(c), streams, { deadline: triggeredUntil() })),
    rateLimit,
    ...(cors && { cors }),
    ...(kick && { onPublished }),
  });

  /** Somebody who triggers by URL may hang up, which leaves no more than the afterlife. */
  function triggeredUntil(): number {
    return Date.now() + Math.min(budgetMs, afterlifeMs);
  }

  /** Opens the one connection of an invocation, for all that it does. */
  function connecting(env: Env, ctx: () => Pick<ExecutionContext, "waitUntil">): Connect {
    return shareConnection(async (ms) => {
      if (!hub) return connectWith(env, ms, { open: openUpgraded });
      const connection = await hub(env, ms);
      ctx().waitUntil(connection.closed()); // what was said last would be lost with the invocation
      return connection;
    });
  }

  function connectingFor(c: Context): Connect {
    return connecting(c.env, () => c.executionCtx);
  }

  /** Over the connection of its request, which is kept for it. */
  function onPublished(c: Context, subject: string, began: number): void {
    const wanted = bindings.filter(({ consumer }) => consumer.filters.some((filter) => covers(filter, subject)));
    const connect = requests.get(c);
    if (wanted.length === 0 || !connect) return;
    const deadline = began + afterlifeMs;
    const kept = connect(0); // it is open
    const run = (due: readonly Binding[]) => reported(invokeIn(c.env, due, { deadline, connect: () => kept }));
    c.executionCtx.waitUntil(kicks.kick(wanted, deadline, run).finally(() => kept.then(disconnect)));
  }

  function invokeIn(
    env: Env,
    due: readonly Binding[],
    how: Pick<InvocationOptions, "deadline" | "connect"> & Partial<InvocationOptions>,
    sharers = 1, // of what the plan allows
  ): Promise<InvocationReport> {
    const bounded = boundedBy(plan, due, sharers);
    return invoke({
      streams,
      ...bounded,
      concurrency: Math.min(options.concurrency ?? Infinity, bounded.concurrency),
      host,
      fanOut,
      onMore: onMore && ((places, report) => onMore(places, env, report)),
      log: logJson,
      ...how,
    });
  }

  function jobFor(cron: string): Due {
    try {
      return jobOf(cron);
    } catch (error) {
      logJson({ event: "failed", error: textOf(error) });
      throw error;
    }
  }

  return {
    fetch: async (request, env, ctx) => http.fetch(request, env, ctx),
    async scheduled({ cron }, env, ctx) {
      const deadline = Date.now() + budgetMs;
      const { bindings: due, releases } = jobFor(cron);
      const connect = connecting(env, () => ctx);
      const consuming =
        due.length > 0 || !releases ? reported(invokeIn(env, due, { deadline, linger, connect })) : undefined;
      // beside the consumers, until the next tick does: a Worker bills no waiting
      const releasing = releases
        ? releaseOver(connect, streams, { deadline: Date.now() + releaseMs, lingerMs: Infinity })
        : undefined;
      releasing?.catch(() => {}); // told at the end
      try {
        await consuming;
      } finally {
        await releasing;
      }
    },
    async queue({ messages }, env, ctx) {
      const places = messages.flatMap(({ body }) => placeIn(body) ?? []);
      const connect = connecting(env, () => ctx);
      const goOn = (place: Place) =>
        invokeIn(env, bindings, { deadline: Date.now() + budgetMs, place, connect }, places.length);
      await Promise.all(places.map((place) => reportedOnce(goOn(place))));
    },
  };
}

type Connect = (ms: number) => Promise<Connection>;

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

function assertPossible(plan: string, budgetMs: number): void {
  if (!Object.hasOwn(plans, plan)) {
    const known = Object.keys(plans).map((name) => `"${name}"`);
    throw new SortieError("invalid-option", `plan: expected ${known.join(" or ")}, got ${shown(plan)}`);
  }
  if (budgetMs > longestMs)
    throw new SortieError(
      "invalid-option",
      `budget: expected 15 minutes at most, after which Workers end an invocation, got ${budgetMs} ms`,
    );
}
