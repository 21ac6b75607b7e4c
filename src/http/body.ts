import { RequestError } from "./problem.ts";

/** nats-server's own max_payload, unless configured. */
const mostBytes = 1024 * 1024;

/** A request's body, of which no more is ever held than may be. Throws `payload-too-large`. */
export async function bodyOf(request: Request): Promise<Uint8Array<ArrayBuffer>> {
  if (Number(request.headers.get("Content-Length")) > mostBytes) throw tooLarge();
  const chunks: Uint8Array[] = [];
  let length = 0;
  // what is declared need not be what comes
  for (const reader = request.body?.getReader(); reader; ) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > mostBytes) {
      await reader.cancel().catch(() => {});
      throw tooLarge();
    }
    chunks.push(value);
  }
  const body = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  return body;
}

/** The JSON object of a body. Throws `invalid-request` for anything else. */
export async function objectOf(request: Request): Promise<Record<string, unknown>> {
  const body = parsed(await bodyOf(request));
  if (typeof body === "object" && body !== null && !Array.isArray(body)) return body as Record<string, unknown>;
  const expected = 'Expected a JSON object such as {"subject":"orders.reminder","data":{},"in":"1h"}';
  throw new RequestError("invalid-request", expected);
}

function parsed(body: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    return undefined;
  }
}

function tooLarge(): RequestError {
  return new RequestError("payload-too-large", `Expected a payload of ${mostBytes} bytes at most`);
}
