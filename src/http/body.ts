import { SortieError } from "../errors.ts";
import { within } from "../nats/within.ts";
import { storyBytes } from "../publish/publish.ts";
import { decode, deepest } from "../schema.ts";
import { RequestError } from "./problem.ts";

/** nats-server's own max_payload, unless configured. */
const mostBytes = 1024 * 1024;

/**
 * A request's body, of which no more is ever held than may be.
 * @throws RequestError `payload-too-large`; `request-timeout` where it has not come within `ms`; `invalid-request` where it
 * breaks off.
 */
export async function bodyOf(request: Request, ms: number): Promise<Uint8Array<ArrayBuffer>> {
  if (Number(request.headers.get("Content-Length")) > mostBytes) throw tooLarge();
  const reader = request.body?.getReader();
  if (!reader) return new Uint8Array();
  try {
    return await within(ms, "reading the body", readAll(reader));
  } catch (error) {
    reader.cancel().catch(() => {}); // not waited for: whoever sends may never answer
    if (error instanceof RequestError) throw error;
    if (error instanceof SortieError) throw new RequestError("request-timeout", "Expected the whole body sooner");
    throw new RequestError("invalid-request", "The body broke off before its end");
  }
}

async function readAll(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  // what is declared need not be what comes
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    length += read.value.length;
    if (length > mostBytes) throw tooLarge();
    chunks.push(read.value);
  }
  const body = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  return body;
}

/** The JSON object of a body. Throws as `bodyOf`, and `invalid-request` for anything else. */
export async function objectOf(request: Request, ms: number): Promise<Record<string, unknown>> {
  const body = parsed(await bodyOf(request, ms));
  if (typeof body === "object" && body !== null && !Array.isArray(body)) return body as Record<string, unknown>;
  const expected = `Expected a JSON object, not nested deeper than ${deepest}, such as {"subject":"orders.reminder","data":{},"in":"1h"}`;
  throw new RequestError("invalid-request", expected);
}

function parsed(body: Uint8Array): unknown {
  try {
    return decode("a schedule", body);
  } catch {
    return undefined;
  }
}

function tooLarge(): RequestError {
  return new RequestError(
    "payload-too-large",
    `Expected a body of ${mostBytes} bytes at most; nats-server's own max_payload leaves a message ${mostBytes - storyBytes}, headers included`,
  );
}
