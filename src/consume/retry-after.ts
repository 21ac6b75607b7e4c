const longestMs = 366 * 86_400_000; // nobody means more than a year

/**
 * The `Retry-After` (RFC 9110, section 10.2.3: seconds, or an HTTP date) that an error of an HTTP client carries: on the
 * error or on its `response`, as `Headers` or as an object; a thrown `Response` will do as well. Undefined without one.
 */
export function retryAfterMs(error: unknown, now: number): number | undefined {
  const value = headerOf(error) ?? headerOf(property(error, "response"));
  if (value === undefined) return undefined;
  const ms = /^\d+$/.test(value) ? Number(value) * 1_000 : /^\w{3,9}, /.test(value) ? Date.parse(value) - now : NaN;
  return ms >= 0 ? Math.min(ms, longestMs) : undefined;
}

function headerOf(holder: unknown): string | undefined {
  const headers = property(holder, "headers");
  const get = property(headers, "get");
  const value = typeof get === "function" ? get.call(headers, "retry-after") : fieldOf(headers);
  return typeof value === "string" || typeof value === "number" ? `${value}`.trim() : undefined;
}

function fieldOf(headers: unknown): unknown {
  if (typeof headers !== "object" || headers === null) return undefined;
  const name = Object.keys(headers).find((key) => key.toLowerCase() === "retry-after");
  return name && property(headers, name);
}

function property(of: unknown, name: string): unknown {
  try {
    return typeof of === "object" && of !== null ? (of as Record<string, unknown>)[name] : undefined;
  } catch {
    return undefined;
  }
}
