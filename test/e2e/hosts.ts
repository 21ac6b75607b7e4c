import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { LambdaFunctionURLResult } from "aws-lambda";
import { startWorker } from "../../scripts/worker.ts";
import { bundleWorker } from "../support/bundle.ts";
import { scheduledEvent, urlEvent } from "./lambda-events.ts";
import type { LambdaPackage } from "./lambda-package.ts";
import { type LambdaFunction, startFunction } from "./lambda-runtime.ts";

/** A line of a function's log. */
interface Line {
  readonly event: string;
  readonly [name: string]: unknown;
}

/** The sample system on one host, as the world outside sees it. */
export interface Deployed extends AsyncDisposable {
  /** One request over HTTP. */
  ask(request: Request): Promise<Response>;
  /** What its clock does once a minute. It need not have ended. */
  tick(): Promise<void>;
  readonly log: readonly Line[];
}

/** Starts the sample system with these settings. */
export type StartHost = (settings: Record<string, string>) => Promise<Deployed>;

/** The bundle that `wrangler deploy` makes, or one of another program with a hub, in workerd. */
export async function startInWorkerd(settings: Record<string, string>, program?: string): Promise<Deployed> {
  const log: Line[] = [];
  const worker = await startWorker({
    bindings: settings,
    ...(program !== undefined && { script: await bundleWorker(program), durableObjects: { HUB: "Hub" } }),
    onLog: (line) => log.push(...parsed(line)),
  });
  return {
    log,
    ask: (request) => fetch(at(worker.url, request)),
    async tick() {
      for (const cron of worker.crons) await worker.fire(cron);
    },
    [Symbol.asyncDispose]: () => worker[Symbol.asyncDispose](),
  };
}

/** What the serverless framework has packaged, under Lambda's runtime interface. */
export async function startInLambda(deployed: LambdaPackage, settings: Record<string, string>): Promise<Deployed> {
  const log: Line[] = [];
  const [http, pull, release] = (await Promise.all(
    ["http", "pull", "release"].map((name) => startFunction(deployed.taskRoot, deployed.function(name), settings)),
  )) as [LambdaFunction, LambdaFunction, LambdaFunction];
  let last: Promise<unknown> = Promise.resolve();
  async function invoke(one: LambdaFunction, event: unknown) {
    const invocation = await one.invoke(event);
    log.push(...invocation.log.split("\n").flatMap(parsed));
    return invocation;
  }
  return {
    log,
    /** An instance has one request at a time. */
    ask(request) {
      const asked = last.then(async () => answerOf((await invoke(http, await urlEvent(request))).response));
      last = asked.catch(() => {});
      return asked;
    },
    async tick() {
      await Promise.all([invoke(pull, scheduledEvent), invoke(release, scheduledEvent)]);
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([http, pull, release].map((one) => one[Symbol.asyncDispose]()));
    },
  };
}

/** What a function URL makes of an answer. */
function answerOf(response: unknown): Response {
  const { statusCode, headers, body = "", isBase64Encoded } = response as Exclude<LambdaFunctionURLResult, string>;
  const bytes = isBase64Encoded ? Buffer.from(body, "base64") : body;
  return new Response(bytes, { status: statusCode ?? 200, headers: headers as Record<string, string> });
}

/** A host that knows nothing but `fetch`, and a clock that sends requests. */
export const startUnderFetch: StartHost = (settings) => startProcess("test/e2e/fetch-host.ts", settings, tickByUrl);

/** A container, which needs no clock. */
export const startInContainer: StartHost = (settings) => startProcess("functions/node.ts", settings, async () => {});

/** A program that says where it listens, in its log. */
async function startProcess(
  program: string,
  settings: Record<string, string>,
  tick: (ask: Deployed["ask"], settings: Record<string, string>) => Promise<void>,
): Promise<Deployed> {
  const env = { ...process.env, ...settings, PORT: "0" };
  const child = spawn(process.execPath, [program], { env, stdio: ["ignore", "pipe", "inherit"] });
  const log: Line[] = [];
  const lines = createInterface({ input: child.stdout });
  const listening = Promise.withResolvers<string>();
  lines.on("line", (line) => {
    for (const entry of parsed(line)) {
      log.push(entry);
      if (entry.event === "listening") listening.resolve(entry.url as string);
    }
  });
  child.once("exit", (code) => listening.reject(new Error(`${program} ended with ${code}`)));
  const url = new URL(await listening.promise);
  const ask = (request: Request) => fetch(at(url, request));
  return {
    log,
    ask,
    tick: () => tick(ask, settings),
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}

/** As any clock that can send a request: one for each consumer, and one to release. */
async function tickByUrl(ask: Deployed["ask"], { SORTIE_RUN_TOKEN }: Record<string, string>): Promise<void> {
  const headers = { Authorization: `Bearer ${SORTIE_RUN_TOKEN}` };
  const paths = ["run/billing", "run/reminders", "run/statements", "run/resizer", "release"];
  await Promise.all(
    paths.map(async (path) => {
      const response = await ask(new Request(`http://any.test/${path}`, { method: "POST", headers }));
      if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    }),
  );
}

function at(url: URL, request: Request): Request {
  const { pathname, search } = new URL(request.url);
  return new Request(new URL(pathname + search, url), request);
}

function parsed(line: string): Line[] {
  try {
    const entry: unknown = JSON.parse(line);
    return typeof entry === "object" && entry !== null && "event" in entry ? [entry as Line] : [];
  } catch {
    return []; // what the runtime says
  }
}
