// Stand-ins for what your own functions would call; replace them first.

/** A payment provider: `tok_declined` is refused for good, `tok_busy` only the first time. */
export async function charge(
  { card }: { card: string; cents: number; idempotencyKey: string },
  attempt: number,
): Promise<{ status: 200 | 402 | 429 }> {
  if (card === "tok_declined") return { status: 402 };
  if (card === "tok_busy" && attempt === 1) return { status: 429 };
  return { status: 200 };
}

/** An image service that knows every image but `missing.png`. */
export async function resize(url: string): Promise<void> {
  if (url.endsWith("/missing.png")) throw new Error(`no image at ${url}`);
}
