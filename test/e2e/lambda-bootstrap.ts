// What runs inside a function's process: stands in for aws-lambda-ric 4.0.2, whose installation compiles curl and a native
// addon. It follows that package's own source: how the handler is found, which handlers are refused, what a context has,
// how an error is told.
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

type Handler = (event: unknown, context: object) => unknown;

const api = `http://${setting("AWS_LAMBDA_RUNTIME_API")}/2018-06-01/runtime`;

const handler = await load(setting("LAMBDA_TASK_ROOT"), setting("_HANDLER")).catch(async (error: unknown) => {
  console.error("Init Error", error);
  await post("init/error", told(error));
  process.exit(1);
});
for (;;) await serveOne();

async function serveOne(): Promise<void> {
  const next = await fetch(`${api}/invocation/next`);
  const context = contextOf(next.headers);
  try {
    const result = await handler(await next.json(), context);
    await post(`invocation/${context.awsRequestId}/response`, result ?? null);
  } catch (error) {
    console.error("Invoke Error", error);
    await post(`invocation/${context.awsRequestId}/error`, told(error));
  }
}

async function load(taskRoot: string, handlerString: string): Promise<Handler> {
  if (handlerString.includes(".."))
    throw failure("MalformedHandlerName", `'${handlerString}' is not a valid handler name`);
  const last = basename(handlerString);
  const folder = handlerString.slice(0, handlerString.indexOf(last)).replace(/\/$/, "");
  const [, moduleName, path] = /^([^.]*)\.(.*)$/.exec(last) ?? [];
  if (moduleName === undefined || path === undefined) throw failure("MalformedHandlerName", "Bad handler");

  const module = await loadModule(taskRoot, folder, moduleName);
  const found = findIn(module, path) ?? findIn((module as { default?: unknown }).default, path);
  if (typeof found !== "function") throw failure("HandlerNotFound", `${handlerString} is undefined or not exported`);
  if (found.length > 2) throw failure("CallbackHandlerDeprecated", "Node.js 24 takes no handlers with a callback");
  return found as Handler;
}

async function loadModule(taskRoot: string, folder: string, name: string): Promise<unknown> {
  const base = resolve(taskRoot, folder, name);
  const file = ["", ".js", ".mjs", ".cjs"].map((extension) => `${base}${extension}`).find((path) => existsSync(path));
  if (file) return import(pathToFileURL(file).href);
  const require = createRequire(import.meta.url);
  return require(require.resolve(name, { paths: [taskRoot, join(taskRoot, folder)] }));
}

function findIn(module: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((nested, key) => {
    return nested && typeof nested === "object" ? (nested as Record<string, unknown>)[key] : undefined;
  }, module);
}

function contextOf(headers: Headers) {
  const deadline = Number(headers.get("lambda-runtime-deadline-ms"));
  return {
    awsRequestId: headers.get("lambda-runtime-aws-request-id"),
    invokedFunctionArn: headers.get("lambda-runtime-invoked-function-arn"),
    functionName: setting("AWS_LAMBDA_FUNCTION_NAME"),
    functionVersion: setting("AWS_LAMBDA_FUNCTION_VERSION"),
    memoryLimitInMB: setting("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
    logGroupName: setting("AWS_LAMBDA_LOG_GROUP_NAME"),
    logStreamName: setting("AWS_LAMBDA_LOG_STREAM_NAME"),
    getRemainingTimeInMillis: () => deadline - Date.now(),
  };
}

async function post(path: string, body: unknown): Promise<void> {
  const answer = await fetch(`${api}/${path}`, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`The Runtime API answered ${path} with ${answer.status}`);
  await answer.arrayBuffer(); // frees the connection for the next call
}

function told(error: unknown) {
  if (!(error instanceof Error)) return { errorType: typeof error, errorMessage: String(error), trace: [] };
  return { errorType: error.name, errorMessage: error.message, trace: error.stack?.split("\n") ?? [] };
}

function failure(name: string, message: string): Error {
  return Object.assign(new Error(message), { name: `Runtime.${name}` });
}

function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw failure("PlatformError", `Missing required environment variables: ${name}`);
  return value;
}
