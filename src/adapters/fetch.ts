import type { Context } from "hono";
import type { App } from "../app.ts";
import { invoke, type Linger, lingerMs } from "../consume/invocation.ts";
import type { Duration } from "../duration.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import {
  assertConcurrency,
  budgetOf,
  connectWith,
  logJson,
  releaseOver,
  reported,
  type Settings,
  tokensIn,
} from "./settings.ts";

export interface ServeOptions extends SurfaceOptions {
  /**
   * The time that one invocation by `/run/{consumer}` or `/release` may take: less than the host lets a request take, and
   * whoever triggers it waits for an answer. @default "25s"
   */
  budget?: Duration;
  /** What an invocation does when nothing is left. Most hosts bill the time that it waits. @default "drain" */
  linger?: Linger;
  /** How many handlers run at the same time in one invocation. @default as many as these allow */
  concurrency?: number;
  /** What the host is called in the story of what fails. @default "fetch" */
  host?: string;
  /**
   * Where a request came from, as the host vouches for it, for the limit on callers without a token; `beside` is what the host
   * gave `fetch` with the request. A header that a client can write itself is no answer. @default unknown
   */
  address?(request: Request, beside: unknown): string | undefined;
}

/** What any host that serves `fetch` takes. */
export interface FetchHandlers {
  /**
   * The HTTP surface. Settings come from the environment of the process; a host that has none gives them as `beside`.
   * Anything else that a host gives there is left to `address`.
   */
  fetch(request: Request, beside?: unknown): Promise<Response>;
}

/**
 * Serves an app on any host that runs `fetch`: Deno, Bun, Vercel, Netlify, Azure, Node. Any clock that can send a request
 * triggers its consumers, by `POST /run/{consumer}`, and what is released later, by `POST /release`.
 * @throws SortieError `invalid-option` for a malformed budget, linger, rate limit or origin.
 * @example
 * export const { fetch } = serve(app);
 * Deno.serve(fetch);
 */
export function serve(app: App, options: ServeOptions = {}): FetchHandlers {
  const {
    budget = "25s",
    linger = "drain",
    concurrency = Infinity,
    host = "fetch",
    address,
    rateLimit,
    cors,
  } = options;
  const { streams, fanOut } = app;
  const budgetMs = budgetOf(budget);
  const stayMs = lingerMs(linger); // a malformed one is to be known at the deploy
  assertConcurrency(concurrency);
  const connect = (c: Context, ms: number) => connectWith(settingsIn(c.env), ms);
  const http = createHttp(app, {
    connect,
    tokens: (c) => tokensIn(settingsIn(c.env)),
    ...(address && { address: (c) => address(c.req.raw, c.env) }),
    rateLimit,
    ...(cors && { cors }),
    run(c, bindings) {
      const deadline = Date.now() + budgetMs;
      const own = { streams, fanOut, linger, concurrency, host, log: logJson };
      return reported(invoke({ ...own, bindings, deadline, connect: (ms) => connect(c, ms) }));
    },
    release: (c) => releaseOver((ms) => connect(c, ms), streams, { deadline: Date.now() + budgetMs, lingerMs: stayMs }),
  });
  return { fetch: async (request, beside) => http.fetch(request, beside as object | undefined) };
}

/** The settings that a host gave with the request, or those of its process. */
function settingsIn(beside: unknown): Settings {
  if (typeof beside === "object" && beside !== null && "NATS_URL" in beside) return beside as Settings;
  return typeof process === "undefined" ? {} : process.env;
}
