import type { Context } from "hono";
import { handle, type LambdaContext, type LambdaEvent } from "hono/aws-lambda";
import type { App } from "../app.ts";
import { assertFanOut, type OnMore } from "../consume/continuation.ts";
import { invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { InvocationReport } from "../consume/report.ts";
import { assertCounts } from "../define/count.ts";
import { type Duration, toMs } from "../duration.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import type { ReleaseReport } from "../schedule/release.ts";
import { httpEvent } from "./http-event.ts";
import { keepConnection } from "./kept-connection.ts";
import {
  assertConcurrency,
  connectWith,
  logJson,
  placeIn,
  releaseOver,
  reported,
  reportedOnce,
  tokensIn,
} from "./settings.ts";

export { selfInvoke } from "./self-invoke.ts";

export interface ServeOptions extends SurfaceOptions {
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these allow */
  concurrency?: number;
  /** What `pull` does when nothing is left: Lambda bills the time that it waits. @default "drain" */
  linger?: Linger;
  /**
   * How long a connection may be idle and still be used by the next invocation, which asks first whether it is still there;
   * 0 closes it with each invocation. An app with `fanOut`, which counts connections, has `pull` close its own in any case.
   * @default "90s", so that it lasts until the next tick of a minute
   */
  keep?: Duration;
  /**
   * Called at the end of a `pull` that leaves something to do: starts another one for each of `places`, once, with the place
   * as its event. How many there are is decided from what is left, within the app's `fanOut`. What it answers is waited for,
   * for a tenth of the time and a second at most; what it throws is in the report. @default nobody goes on before the next tick
   */
  onMore?: OnMore;
  /** How many invocations may follow one that a trigger started, each asked for by the one before. @default 16 */
  depth?: number;
}

/** What is needed of the context that Lambda gives a handler. */
type InvocationContext = Pick<LambdaContext, "getRemainingTimeInMillis">;

/** The handlers of Lambda functions, one function each. What runs in one instance shares one connection. */
export interface LambdaHandlers {
  /**
   * The HTTP surface, for a function URL, API Gateway (REST or HTTP API) or an application load balancer.
   * @throws SortieError `not-configured` for an event that is no HTTP request, such as a schedule's.
   */
  http: ReturnType<typeof handle>;
  /** One invocation over all consumers, for a schedule, or for `onMore` with a place as its event. */
  pull(event: unknown, context: InvocationContext): Promise<InvocationReport>;
  /** One scheduler invocation, for a schedule. */
  release(event: unknown, context: InvocationContext): Promise<ReleaseReport>;
}

const closingMs = 250; // of a connection whose peer does not answer
const runtimeMs = 250; // for the runtime to take the answer before it ends the function

/**
 * Serves an app as AWS Lambda functions; settings come from the environment.
 * @throws SortieError `invalid-option` for `onMore` where the app has no `fanOut`.
 * @example
 * export const { http, pull, release } = serve(app);
 */
export function serve(
  app: App,
  { linger = "drain", concurrency = Infinity, keep = "90s", onMore, depth = 16, rateLimit, cors }: ServeOptions = {},
): LambdaHandlers {
  const { streams, bindings, fanOut } = app;
  const stayMs = lingerMs(linger); // a malformed one is to be known at the deploy
  assertConcurrency(concurrency);
  assertFanOut(fanOut, onMore);
  assertCounts({ depth }, "serve");
  const open = (ms: number) => connectWith(process.env, ms);
  const kept = keepConnection(open, toMs(keep, "keep"));
  endWithInstance(kept.end);
  const remaining = (context: InvocationContext) => context.getRemainingTimeInMillis() - runtimeMs;
  const common = {
    streams,
    concurrency,
    fanOut,
    host: process.env.AWS_LAMBDA_LOG_STREAM_NAME ?? "aws-lambda",
    log: logJson,
  };
  const http = handle(
    createHttp(app, {
      connect: (_c, ms) => kept.connect(ms),
      tokens: () => tokensIn(process.env),
      remaining: (c) => remaining(contextOf(c)),
      address: addressOf,
      // it goes on with nobody: `onMore` is told of what `pull` leaves, and this is another function
      run: (c, due) =>
        reported(
          invoke({ ...common, connect: kept.connect, bindings: due, deadline: Date.now() + remaining(contextOf(c)) }),
        ),
      release: (c) => releaseWithin(remaining(contextOf(c)), 0),
      rateLimit,
      ...(cors && { cors }),
    }),
  );
  return {
    http: async <Event extends LambdaEvent>(event: Event, context?: LambdaContext) => http(httpEvent(event), context),
    async pull(event, context) {
      const place = placeIn(event);
      const before = place ? depthIn(event) : 0;
      const goOn: OnMore | undefined =
        onMore &&
        ((places, report) =>
          onMore(
            places.map((next) => ({ ...next, depth: before + 1 })),
            report,
          ));
      return (place ? reportedOnce : reported)(
        invoke({
          ...common,
          connect: fanOut ? open : kept.connect, // one that is kept has a place to itself
          bindings,
          deadline: Date.now() + remaining(context),
          onMore: before < depth ? goOn : undefined,
          place,
          linger: place ? "drain" : linger, // who goes on for others waits for nothing
        }),
      );
    },
    release: (_event, context) => releaseWithin(remaining(context), stayMs),
  };

  function releaseWithin(ms: number, lingerMs: number): Promise<ReleaseReport> {
    return releaseOver(kept.connect, streams, { deadline: Date.now() + ms - closingMs, lingerMs });
  }
}

function contextOf(c: Context): LambdaContext {
  return (c.env as { lambdaContext: LambdaContext }).lambdaContext;
}

/** Where a request came from, as function URLs and both API Gateways say it; a load balancer says nothing of its own. */
function addressOf(c: Context): string | undefined {
  const { requestContext } = c.env as {
    requestContext?: { http?: { sourceIp?: string }; identity?: { sourceIp?: string } };
  };
  return requestContext?.http?.sourceIp ?? requestContext?.identity?.sourceIp;
}

/** How many invocations came before the one that was asked for with this event, as `onMore` was told. */
function depthIn(event: unknown): number {
  const { depth } = event as { depth?: unknown };
  return typeof depth === "number" ? depth : 1;
}

/** Before an instance goes, its process is told so where an extension is registered; without one it is just ended. */
function endWithInstance(end: () => Promise<void>): void {
  process.once("SIGTERM", async () => {
    await end().catch(() => {});
    if (process.listenerCount("SIGTERM") === 0) process.kill(process.pid, "SIGTERM"); // as without us
  });
}
