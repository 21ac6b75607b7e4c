import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { setImmediate as immediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { FunctionProperties } from "./lambda-package.ts";

/** How an invocation ended, as Lambda tells its caller. */
interface Outcome {
  /** What the handler returned. */
  response?: unknown;
  error?: { errorType: string; errorMessage: string; trace?: string[] };
}

/** One invocation, with what the function wrote to its log meanwhile. */
export interface Invocation extends Outcome {
  ms: number;
  log: string;
}

/** One execution environment of a Lambda function: a process, frozen except while it initializes or handles an invocation. */
export interface LambdaFunction extends AsyncDisposable {
  /** The process, where there is one. */
  readonly pid: number | undefined;
  /** One at a time. Starts the process where there is none, and kills it at the function's timeout. */
  invoke(event: unknown): Promise<Invocation>;
}

const arn = "arn:aws:lambda:eu-central-1:123456789012:function";
const runtimePath = "/2018-06-01/runtime";

/** With LAMBDA_RIC naming the entry file of an installed aws-lambda-ric, functions run under the real one. */
const bootstrap = process.env.LAMBDA_RIC ?? fileURLToPath(new URL("lambda-bootstrap.ts", import.meta.url));

/** Serves Lambda's Runtime API for a function of an unpacked archive. `environment` goes over the template's own. */
export async function startFunction(
  taskRoot: string,
  { FunctionName, Handler, Runtime, MemorySize, Timeout, Environment }: FunctionProperties,
  environment: Record<string, string> = {},
): Promise<LambdaFunction> {
  let child: ChildProcess | undefined;
  let waiting: ServerResponse | undefined; // the process's request for its next invocation
  let requestId = "";
  let posted: Outcome | undefined;
  let endTurn = () => {};
  let log = "";

  const api = createServer((request, response) => void answer(request, response));
  api.keepAliveTimeout = 0; // a connection closed under a frozen process would fail its next call
  api.listen(0, "127.0.0.1");
  await once(api, "listening");
  const { port } = api.address() as AddressInfo;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url?.slice(runtimePath.length) ?? "";
    if (path === "/invocation/next") {
      waiting = response;
      child?.kill("SIGSTOP");
      endTurn();
      return;
    }
    const body: unknown = JSON.parse(await text(request));
    const failed = ["/init/error", `/invocation/${requestId}/error`].includes(path);
    const known = failed || path === `/invocation/${requestId}/response`;
    if (known) posted ??= failed ? { error: body as NonNullable<Outcome["error"]> } : { response: body };
    response.writeHead(known ? 202 : 400).end("{}");
  }

  /** From `begin` until the process asks for an invocation or ends. */
  async function turn(begin: () => void): Promise<void> {
    posted = undefined;
    const ended = new Promise<void>((resolve) => {
      endTurn = resolve;
    });
    begin();
    await ended;
    await immediate(); // what was written to the log before is read by then
  }

  function start(): void {
    const started = spawn(process.execPath, [bootstrap], {
      cwd: taskRoot,
      env: environmentOf(),
      stdio: ["ignore", "pipe", "pipe"],
    });
    child = started;
    for (const stream of [started.stdout, started.stderr]) stream.on("data", (chunk) => (log += chunk));
    const reaper = reaperOf(started);
    started.on("close", (code, signal) => {
      reaper.kill("SIGKILL");
      [child, waiting] = [undefined, undefined];
      posted ??= { error: { errorType: "Runtime.ExitError", errorMessage: `Runtime exited with ${signal ?? code}` } };
      endTurn();
    });
  }

  function resume(event: unknown): void {
    requestId = randomUUID();
    child?.kill("SIGCONT");
    waiting?.setHeader("Lambda-Runtime-Aws-Request-Id", requestId);
    waiting?.setHeader("Lambda-Runtime-Deadline-Ms", `${Date.now() + Timeout * 1000}`);
    waiting?.setHeader("Lambda-Runtime-Invoked-Function-Arn", `${arn}:${FunctionName}`);
    waiting?.setHeader("Content-Type", "application/json");
    waiting?.end(JSON.stringify(event));
    waiting = undefined;
  }

  function timeOut(): void {
    posted ??= { error: { errorType: "Sandbox.Timedout", errorMessage: `Task timed out after ${Timeout} seconds` } };
    kill();
  }

  async function invoke(event: unknown): Promise<Invocation> {
    log = "";
    if (!child) await turn(start);
    const started = Date.now();
    if (waiting) {
      const timer = setTimeout(timeOut, Timeout * 1000);
      await turn(() => resume(event));
      clearTimeout(timer);
    }
    return { ...posted, ms: Date.now() - started, log };
  }

  function environmentOf(): Record<string, string> {
    return {
      ...Environment.Variables,
      ...environment,
      _HANDLER: Handler,
      LAMBDA_TASK_ROOT: taskRoot,
      AWS_LAMBDA_RUNTIME_API: `127.0.0.1:${port}`,
      AWS_EXECUTION_ENV: `AWS_Lambda_${Runtime}`,
      AWS_LAMBDA_FUNCTION_NAME: FunctionName,
      AWS_LAMBDA_FUNCTION_VERSION: "$LATEST",
      AWS_LAMBDA_FUNCTION_MEMORY_SIZE: `${MemorySize}`,
      AWS_LAMBDA_LOG_GROUP_NAME: `/aws/lambda/${FunctionName}`,
      AWS_LAMBDA_LOG_STREAM_NAME: "2026/01/01/[$LATEST]1",
      AWS_REGION: "eu-central-1",
      TZ: ":UTC",
    };
  }

  function kill(): void {
    child?.kill("SIGKILL"); // ends a frozen process as well
  }

  async function stop(): Promise<void> {
    if (child) {
      const exited = once(child, "close");
      kill();
      await exited;
    }
    api.closeAllConnections();
    api.close();
  }

  return {
    get pid() {
      return child?.pid;
    },
    invoke,
    [Symbol.asyncDispose]: stop,
  };
}

/** Kills the function when this process is gone, however it ended: a frozen process would be left for ever. */
function reaperOf({ pid }: ChildProcess): ChildProcess {
  return spawn("/bin/sh", ["-c", `read _; kill -KILL ${pid}`], { detached: true, stdio: ["pipe", "ignore", "ignore"] });
}
