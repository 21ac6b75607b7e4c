import type { ExecutionContext } from "hono";
import type { App } from "../app.ts";
import { invoke } from "../consume/invocation.ts";
import { type Duration, toMs } from "../duration.ts";
import { createHttp } from "../http/http.ts";
import { connectWith, logJson, reported, type Settings } from "./settings.ts";

export interface ServeOptions {
  /** The time that one cron invocation may take; Workers end it after 15 minutes. @default "50s" */
  budget?: Duration;
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
export function serve(app: App, { budget = "50s" }: ServeOptions = {}): WorkerHandlers {
  const budgetMs = toMs(budget, "budget");
  const http = createHttp(app, {
    connect: (c, ms) => connectWith(c.env as Settings, ms, openUpgraded),
    publishToken: (c) => (c.env as Settings).SORTIE_PUBLISH_TOKEN,
  });
  return {
    fetch: async (request, env, ctx) => http.fetch(request, env, ctx),
    async scheduled(_controller, env) {
      const { streams, bindings } = app;
      const connect = (ms: number) => connectWith(env, ms, openUpgraded);
      await reported(invoke({ streams, bindings, connect, deadline: Date.now() + budgetMs, log: logJson }));
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
