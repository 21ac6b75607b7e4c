import type { Context } from "hono";
import { handle, type LambdaContext } from "hono/aws-lambda";
import type { App } from "../app.ts";
import { assertFanOut, type OnMore } from "../consume/continuation.ts";
import { invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { InvocationReport } from "../consume/report.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import { assertLoggedIn, disconnect } from "../nats/connection.ts";
import { type ReleaseReport, release } from "../schedule/release.ts";
import { connectWith, logJson, placeIn, reported, reportedOnce, reportedRelease, tokensIn } from "./settings.ts";

export interface ServeOptions extends SurfaceOptions {
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these allow */
  concurrency?: number;
  /** What `pull` does when nothing is left: Lambda bills the time that it waits. @default "drain" */
  linger?: Linger;
  /**
   * Called at the end of a `pull` that leaves something to do: starts another one for each of `places`, once, with the place
   * as its event. How many there are is decided from what is left, within the app's `fanOut`. What it answers is waited for,
   * for a tenth of the time and a second at most; what it throws is in the report. @default nobody goes on before the next tick
   */
  onMore?: OnMore;
}

/** The handlers of Lambda functions, one function each. */
export interface LambdaHandlers {
  /** The HTTP surface, for a function URL, API Gateway or a load balancer. */
  http: ReturnType<typeof handle>;
  /** One invocation over all consumers, for a schedule, or for `onMore` with a place as its event. */
  pull(event: unknown, context: Pick<LambdaContext, "getRemainingTimeInMillis">): Promise<InvocationReport>;
  /** One scheduler invocation, for a schedule. */
  release(event: unknown, context: Pick<LambdaContext, "getRemainingTimeInMillis">): Promise<ReleaseReport>;
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
  { linger, concurrency = Infinity, onMore, rateLimit, cors }: ServeOptions = {},
): LambdaHandlers {
  const { streams, bindings, fanOut } = app;
  if (linger !== undefined) lingerMs(linger); // a malformed one is to be known at the deploy
  assertFanOut(fanOut, onMore);
  const connect = (ms: number) => connectWith(process.env, ms);
  const remaining = (context: Pick<LambdaContext, "getRemainingTimeInMillis">) =>
    context.getRemainingTimeInMillis() - runtimeMs;
  const http = createHttp(app, {
    connect: (_c, ms) => connect(ms),
    tokens: () => tokensIn(process.env),
    remaining: (c) => remaining(contextOf(c)),
    address: addressOf,
    run: (c, due) =>
      reported(
        invoke({
          ...{ streams, connect, concurrency, host: hostName(), log: logJson, onMore, fanOut },
          bindings: due,
          deadline: Date.now() + remaining(contextOf(c)),
        }),
      ),
    release: (c) => releaseWithin(remaining(contextOf(c)), 0),
    rateLimit,
    ...(cors && { cors }),
  });
  return {
    http: handle(http),
    async pull(event, context) {
      const place = placeIn(event);
      return (place ? reportedOnce : reported)(
        invoke({
          streams,
          bindings,
          connect,
          deadline: Date.now() + remaining(context),
          concurrency,
          host: hostName(),
          log: logJson,
          onMore,
          fanOut,
          place,
          ...(linger !== undefined && !place && { linger }), // who goes on for others waits for nothing,
        }),
      );
    },
    release: (_event, context) => releaseWithin(remaining(context), linger === undefined ? 0 : lingerMs(linger)),
  };

  async function releaseWithin(ms: number, stayMs: number): Promise<ReleaseReport> {
    const deadline = Date.now() + ms - closingMs;
    const connection = await connect(ms / 4);
    try {
      return await reportedRelease(release(connection, streams, { deadline, lingerMs: stayMs }));
    } catch (error) {
      await assertLoggedIn(connection);
      throw error;
    } finally {
      disconnect(connection);
    }
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

function hostName(): string {
  return process.env.AWS_LAMBDA_LOG_STREAM_NAME ?? "aws-lambda";
}
