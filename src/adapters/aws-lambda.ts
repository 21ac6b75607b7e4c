import type { Context } from "hono";
import { handle, type LambdaContext } from "hono/aws-lambda";
import type { App } from "../app.ts";
import { invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { InvocationReport } from "../consume/report.ts";
import { createHttp } from "../http/http.ts";
import { assertLoggedIn, disconnect } from "../nats/connection.ts";
import { type ReleaseReport, release } from "../schedule/release.ts";
import { connectWith, logJson, reported } from "./settings.ts";

export interface ServeOptions {
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these allow */
  concurrency?: number;
  /** What `pull` does when nothing is left: Lambda bills the time that it waits. @default "drain" */
  linger?: Linger;
}

/** The handlers of Lambda functions, one function each. */
export interface LambdaHandlers {
  /** The HTTP surface, for a function URL, API Gateway or a load balancer. */
  http: ReturnType<typeof handle>;
  /** One invocation over all consumers, for a schedule. */
  pull(event: unknown, context: Pick<LambdaContext, "getRemainingTimeInMillis">): Promise<InvocationReport>;
  /** One scheduler invocation, for a schedule. */
  release(event: unknown, context: Pick<LambdaContext, "getRemainingTimeInMillis">): Promise<ReleaseReport>;
}

const runtimeMs = 250; // for the runtime to take the answer before it ends the function

/**
 * Serves an app as AWS Lambda functions; settings come from the environment.
 * @example
 * export const { http, pull, release } = serve(app);
 */
export function serve(app: App, { linger, concurrency = Infinity }: ServeOptions = {}): LambdaHandlers {
  const { streams, bindings } = app;
  if (linger !== undefined) lingerMs(linger); // a malformed one is to be known at the deploy
  const connect = (ms: number) => connectWith(process.env, ms);
  const remaining = (context: Pick<LambdaContext, "getRemainingTimeInMillis">) =>
    context.getRemainingTimeInMillis() - runtimeMs;
  const http = createHttp(app, {
    connect: (_c, ms) => connect(ms),
    publishToken: () => process.env.SORTIE_PUBLISH_TOKEN,
    remaining: (c: Context) => remaining((c.env as { lambdaContext: LambdaContext }).lambdaContext),
  });
  return {
    http: handle(http),
    async pull(_event, context) {
      return reported(
        invoke({
          streams,
          bindings,
          connect,
          deadline: Date.now() + remaining(context),
          concurrency,
          host: process.env.AWS_LAMBDA_LOG_STREAM_NAME ?? "aws-lambda",
          log: logJson,
          ...(linger !== undefined && { linger }),
        }),
      );
    },
    async release(_event, context) {
      const ms = remaining(context);
      const connection = await connect(ms / 4);
      try {
        const report = await release(connection, streams, ms / 2);
        logJson({ event: "release", ...report });
        return report;
      } catch (error) {
        await assertLoggedIn(connection);
        throw error;
      } finally {
        disconnect(connection);
      }
    },
  };
}
