import { once } from "node:events";
import type { IncomingMessage, Server } from "node:http";
import type { AddressInfo } from "node:net";
import { constants, hostname as machine } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { createAdaptorServer, type HttpBindings } from "@hono/node-server";
import type { App } from "../app.ts";
import { invoke } from "../consume/invocation.ts";
import type { Duration } from "../duration.ts";
import { SortieError, shown, textOf } from "../errors.ts";
import { createHttp, type SurfaceOptions } from "../http/http.ts";
import { retryMs } from "../nats/within.ts";
import type { ReleaseReport } from "../schedule/release.ts";
import { keepConnection } from "./kept-connection.ts";
import { assertConcurrency, budgetOf, connectWith, logJson, releaseOver, reported, tokensIn } from "./settings.ts";

export interface ServeOptions extends SurfaceOptions {
  /** Where the HTTP surface listens. @default `PORT` in the environment, else 3000 */
  port?: number;
  /** The address that it listens on. @default all of the machine's */
  hostname?: string;
  /** How many handlers run at the same time, over all consumers. @default as many as these allow */
  concurrency?: number;
  /** The time that one invocation may take, and so a handler; the next one follows at once. @default "1m" */
  budget?: Duration;
  /**
   * Where a request came from, for the limit on callers without a token: behind a proxy, what that writes, as in `(request) =>
   * request.headers.get("x-real-ip") ?? undefined`, where it lets no client write it. @default the other end of the connection
   */
  address?(request: Request, incoming: IncomingMessage): string | undefined;
}

/** An app that is served by a process that stays up. */
export interface Served extends AsyncDisposable {
  /** Where its HTTP surface is. */
  readonly url: string;
  /**
   * Takes nothing on any more, lets the handlers finish that have been started, hands back what has not been, and lets go of
   * the connection and the port. SIGTERM and SIGINT do the same; a second one does not wait.
   */
  stop(): Promise<void>;
}

/** What requests under way have to come to their end when the process is told to leave. */
const requestGraceMs = 5_000;

/** What `/run` and `/release` may take: whoever triggers them waits for an answer. */
const requestMs = 25_000;

/** Where an invocation has nothing to stay for, as while a breaker is open. */
const pulledEachMs = 1_000;
/** Where the server releases by itself, and a function only what comes again. */
const lookedEachMs = 5_000;

const signals = ["SIGTERM", "SIGINT"] as const;
const pausesMs = [250, 15_000] as const;

/**
 * Serves an app in a process that stays up, such as a container: the HTTP surface, one invocation after the other, and a
 * function that releases beside them, all over one connection. It is dialled anew when it is lost, after a while that grows
 * and is another one for each process. Settings come from the environment.
 * @throws SortieError `invalid-option` for a malformed option; what listening throws, as for a port that is taken.
 * @example
 * await serve(app);
 */
export async function serve(app: App, options: ServeOptions = {}): Promise<Served> {
  const { port = portIn(process.env.PORT), hostname, concurrency = Infinity, budget = "1m", address } = options;
  const { rateLimit, cors } = options;
  const { streams, bindings } = app;
  const budgetMs = budgetOf(budget);
  assertConcurrency(concurrency);
  const leaving = new AbortController();
  const kept = keepConnection((ms) => connectWith(process.env, ms), Number.POSITIVE_INFINITY);
  const common = { streams, concurrency, connect: kept.connect, leave: leaving.signal, host: machine(), log: logJson };
  const http = createHttp(app, {
    connect: (_c, ms) => kept.connect(ms),
    tokens: () => tokensIn(process.env),
    address: (c) => (address ?? peerOf)(c.req.raw, (c.env as HttpBindings).incoming),
    run: (_c, due) => reported(invoke({ ...common, bindings: due, deadline: Date.now() + requestMs })),
    release: () => releaseWithin(requestMs, 0),
    rateLimit,
    ...(cors && { cors }),
  });
  const server = createAdaptorServer({ fetch: http.fetch, hostname: "localhost" }) as Server;
  server.listen(port, hostname);
  await once(server, "listening");

  const consume = () =>
    reported(invoke({ ...common, bindings, deadline: Date.now() + budgetMs, linger: "until-budget" }));
  const releaseDue = () =>
    releaseWithin(budgetMs, Infinity).catch((error: unknown) => {
      if (!leaving.signal.aborted) logJson({ event: "failed", error: textOf(error) });
      throw error;
    });
  const working = bindings.length > 0 ? repeat(consume, pulledEachMs) : undefined;
  const releasing = streams.some(({ schedules }) => schedules) ? repeat(releaseDue, lookedEachMs) : undefined;

  function releaseWithin(ms: number, lingerMs: number): Promise<ReleaseReport> {
    return releaseOver(kept.connect, streams, { deadline: Date.now() + ms, lingerMs });
  }

  /** Until the process leaves, not more often than each `idleMs`; what fails is in the log, and is tried again. */
  async function repeat(step: () => Promise<unknown>, idleMs: number): Promise<void> {
    for (let failures = 0; !leaving.signal.aborted; ) {
      const began = Date.now();
      failures = await step().then(
        () => 0,
        () => {
          kept.doubt();
          return failures + 1;
        },
      );
      const ms = Math.max(0, began + (failures > 0 ? retryMs(failures, pausesMs) : idleMs) - Date.now());
      await sleep(ms, undefined, { signal: leaving.signal }).catch(() => {});
    }
  }

  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= leave();
    return stopped;
  };
  async function leave(): Promise<void> {
    leaving.abort();
    const closed = once(server, "close");
    server.close();
    server.closeIdleConnections();
    // somebody may hold a connection open, or never end a request
    const patience = setTimeout(() => server.closeAllConnections(), requestGraceMs);
    await Promise.all([closed, working]);
    clearTimeout(patience);
    await kept.end(); // a function that releases may be cut off anywhere
    await releasing;
    for (const signal of signals) process.off(signal, onSignal);
  }
  function onSignal(signal: (typeof signals)[number]): void {
    if (leaving.signal.aborted) process.exit(128 + constants.signals[signal]); // a second one does not wait
    void stop();
  }
  for (const signal of signals) process.on(signal, onSignal);

  const url = `http://localhost:${(server.address() as AddressInfo).port}`;
  logJson({ event: "listening", url });
  return { url, stop, [Symbol.asyncDispose]: stop };
}

function peerOf(_request: Request, { socket }: IncomingMessage): string | undefined {
  return socket.remoteAddress;
}

function portIn(setting: string | undefined): number {
  if (!setting) return 3000;
  if (/^\d{1,5}$/.test(setting) && Number(setting) < 65_536) return Number(setting);
  throw new SortieError("not-configured", `PORT: expected a port from 0 to 65535, got ${shown(setting)}`);
}
