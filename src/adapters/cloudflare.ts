import type { Context, ExecutionContext } from "hono";
import type { App } from "../app.ts";
import type { Binding } from "../consume/handler.ts";
import { invoke, type Linger } from "../consume/invocation.ts";
import { covers } from "../define/subject.ts";
import { type Duration, toMs } from "../duration.ts";
import { textOf } from "../errors.ts";
import { createHttp } from "../http/http.ts";
import { createKicks } from "./kick.ts";
import { connectWith, logJson, reported, type Settings } from "./settings.ts";

export interface ServeOptions {
  /**
   * The time that one cron invocation may take; Workers end it after 15 minutes. @default "50s"; with `linger:
   * "until-budget"` "65s", so that under a cron of every minute the next one is there before this one leaves
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
}

const host = "cloudflare-workers";

/** Workers end what is left of a request 30 seconds after its answer, at the earliest after it came; less time to be over by then. */
const afterlifeMs = 28_000;

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
export function serve(app: App, { linger = "drain", kick = false, ...options }: ServeOptions = {}): WorkerHandlers {
  const { budget = linger === "until-budget" ? "65s" : "50s" } = options;
  const budgetMs = toMs(budget, "budget");
  const { streams, bindings } = app;
  const open = openUpgraded;
  const kicks = createKicks<Binding>((error) => logJson({ event: "kick-failed", error: textOf(error) }));
  const http = createHttp(app, {
    connect: (c, ms) => connectWith(c.env as Settings, ms, { open }),
    publishToken: (c) => (c.env as Settings).SORTIE_PUBLISH_TOKEN,
    ...(kick && { onPublished }),
  });

  function onPublished(c: Context, subject: string, began: number): void {
    const wanted = bindings.filter(({ consumer }) => consumer.filters.some((filter) => covers(filter, subject)));
    const deadline = began + afterlifeMs;
    const run = (due: readonly Binding[]) => {
      const connect = (ms: number) => connectWith(c.env as Settings, ms, { open, name: "sortie-kick" });
      return reported(invoke({ streams, bindings: due, connect, deadline, host, log: logJson }));
    };
    c.executionCtx.waitUntil(kicks.kick(wanted, deadline, run));
  }

  return {
    fetch: async (request, env, ctx) => http.fetch(request, env, ctx),
    async scheduled(_controller, env) {
      const connect = (ms: number) => connectWith(env, ms, { open });
      const deadline = Date.now() + budgetMs;
      await reported(invoke({ streams, bindings, connect, deadline, linger, host, log: logJson }));
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
