import type { ExecutionContext } from "hono";
import type { App } from "../app.ts";
import { invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import { type Duration, toMs } from "../duration.ts";
import { createHttp } from "../http/http.ts";
import { connectWith, logJson, reported, type Settings } from "./settings.ts";

export interface ServeOptions {
  /** How many handlers run at the same time in one invocation, over all consumers. @default as many as these allow */
  concurrency?: number;
  /**
   * The time that one cron invocation may take; Workers end it after 15 minutes. @default "50s"; with `linger:
   * "until-budget"` "65s", so that under a cron of every minute the next one is there before this one leaves
   */
  budget?: Duration;
  /** What an invocation does when nothing is left: Workers do not bill the time that it waits. @default "drain" */
  linger?: Linger;
}

/** The handlers of a Worker, for `export default`. */
export interface WorkerHandlers {
  fetch(request: Request, env: Settings, ctx: ExecutionContext): Promise<Response>;
  scheduled(controller: { cron: string; scheduledTime: number }, env: Settings, ctx: ExecutionContext): Promise<void>;
}

/**
 * Serves an app as a Cloudflare Worker: `fetch` is its HTTP surface, and each cron trigger runs its consumers once.
 * Connections are never shared between requests, which workerd does not allow.
 * @example
 * export default serve(app);
 */
export function serve(
  app: App,
  { linger = "drain", concurrency = Infinity, ...options }: ServeOptions = {},
): WorkerHandlers {
  const { budget = linger === "until-budget" ? "65s" : "50s" } = options;
  const budgetMs = toMs(budget, "budget");
  lingerMs(linger); // a malformed one is to be known at the deploy
  const http = createHttp(app, {
    connect: (c, ms) => connectWith(c.env as Settings, ms, openUpgraded),
    publishToken: (c) => (c.env as Settings).SORTIE_PUBLISH_TOKEN,
  });
  return {
    fetch: async (request, env, ctx) => http.fetch(request, env, ctx),
    async scheduled(_controller, env) {
      const { streams, bindings } = app;
      const connect = (ms: number) => connectWith(env, ms, openUpgraded);
      const deadline = Date.now() + budgetMs;
      await reported(
        invoke({ streams, bindings, connect, deadline, linger, concurrency, host: "cloudflare-workers", log: logJson }),
      );
    },
  };
}

/**
 * A WebSocket by way of `fetch`, which alone can be aborted: workerd keeps an invocation alive for as long as a peer does
 * not answer the close of a `new WebSocket()`.
 */
async function openUpgraded(url: string, signal: AbortSignal): Promise<WebSocket> {
  const response = await fetch(url.replace(/^ws/, "http"), { headers: { Upgrade: "websocket" }, signal });
  const { webSocket } = response as Response & { webSocket?: (WebSocket & { accept(): void }) | null };
  if (!webSocket) throw new Error(`the peer answered with HTTP ${response.status} and no WebSocket`);
  webSocket.accept();
  return webSocket;
}
