// What `npm start` shows: the sample system at work, on a real nats-server and in real workerd.
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { type Observer, observe } from "./tour/observer.ts";
import { createScreen, type Screen } from "./tour/screen.ts";
import { playTour } from "./tour/story.ts";
import { type LocalWorker, startWorker } from "./worker.ts";

const { values: options } = parseArgs({
  options: { exit: { type: "boolean", default: false }, port: { type: "string", default: process.env.PORT ?? "8787" } },
});
const stopped = new AbortController();
takeSignals();

try {
  process.exitCode = await main(Number(options.port));
} catch (error) {
  if (stopped.signal.aborted) process.exitCode = 130;
  else {
    console.error(`\n${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  }
}

async function main(port: number): Promise<number> {
  await assertFree(port);
  await using resources = new AsyncDisposableStack();
  const screen = createScreen(stopped.signal);
  screen.title("Sortie", "NATS JetStream for functions that don't stay up");

  const login = process.env.NATS_URL
    ? { NATS_CREDS: process.env.NATS_CREDS ?? "", NATS_TOKEN: process.env.NATS_TOKEN ?? "" }
    : {};
  const url = process.env.NATS_URL || resources.use(await startNatsServer()).url;
  const settings = { NATS_CREDS: "", NATS_TOKEN: "", ...login, NATS_URL: url };
  const applied = await sortie(["apply", "functions/app.ts"], settings);
  const observer: Observer = resources.use(await observe(settings));
  screen.fact("nats-server", `${observer.serverVersion}, ${redacted(url)}${process.env.NATS_URL ? " (NATS_URL)" : ""}`);

  screen.fact(
    "sortie apply",
    `${applied.filter((line) => line.includes("stream")).length} streams, ${applied.filter((line) => line.includes("consumer")).length} consumers of functions/app.ts`,
  );

  const token = randomUUID();
  const worker = resources.use(
    await startWorker({
      port,
      bindings: { ...settings, SORTIE_PUBLISH_TOKEN: token, SORTIE_SCHEDULES_TOKEN: token },
      onLog: screen.log,
    }),
  );
  takeSignals();
  screen.fact(
    "worker",
    `${worker.url.href} in workerd; its cron "${worker.crons.join('", "')}" fires every second here`,
  );

  const over = new AbortController();
  const crons = keepFiring(worker, AbortSignal.any([stopped.signal, over.signal]), screen);
  try {
    const facts = await playTour({ worker, token, observer, screen });
    if (!options.exit) {
      screen.invitation(worker.url, token);
      await screen.stopped;
    }
    return facts.every(({ holds }) => holds) ? 0 : 1;
  } finally {
    over.abort();
    await crons;
  }
}

/** Ctrl-C ends the tour in order: miniflare's own handlers, where it has come to set them, end the process at once. */
function takeSignals(): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.removeAllListeners(signal);
    process.on(signal, () => stopped.abort());
  }
}

/** Cloudflare fires the triggers of wrangler.toml by the minute; nobody watches that long. */
async function keepFiring(worker: LocalWorker, signal: AbortSignal, screen: Screen): Promise<void> {
  const running = new Set<Promise<void>>();
  for (;;) {
    await sleep(1_000, undefined, { signal }).catch(() => {});
    if (signal.aborted) break;
    for (const cron of worker.crons) {
      // as on Cloudflare, none waits for the one before
      const firing = worker.fire(cron).then(
        ({ outcome }) => screen.fired(outcome),
        (error: unknown) => {
          if (!signal.aborted) screen.fired(`${error}`); // Ctrl-C ends the worker as well
        },
      );
      running.add(firing);
      void firing.finally(() => running.delete(firing));
    }
  }
  await Promise.all(running);
}

async function sortie(args: string[], settings: Record<string, string>): Promise<string[]> {
  const env = { ...process.env, ...settings };
  const run = promisify(execFile)(process.execPath, ["dist/cli/main.js", ...args], { env });
  const { stdout } = await run.catch(({ stderr }: { stderr: string }) => {
    throw new Error(stderr.trim());
  });
  return stdout.trim().split("\n");
}

async function assertFree(port: number): Promise<void> {
  const probe = createServer();
  const failure = new Promise<NodeJS.ErrnoException>((resolve) => probe.on("error", resolve));
  probe.listen(port, "127.0.0.1");
  const error = await Promise.race([failure, once(probe, "listening").then(() => undefined)]);
  probe.close();
  if (error)
    throw new Error(
      `Port ${port} is not to be had (${error.code}): end what listens there, or choose another with \`PORT=${port + 1} npm start\`.`,
    );
}

function redacted(url: string): string {
  return url.replace(/\/\/[^@/]*@/, "//");
}
