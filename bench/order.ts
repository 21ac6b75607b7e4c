import * as z from "zod";

export const Order = z.object({
  orderId: z.string(),
  customer: z.string(),
  cents: z.int(),
  currency: z.string(),
  placedAt: z.string(),
});

/** The payload of every bench: some 130 bytes of JSON once encoded. */
export function orderAt(n: number): z.infer<typeof Order> {
  const orderId = `order-${String(n).padStart(8, "0")}`;
  return { orderId, customer: "customer-4711", cents: 1999, currency: "EUR", placedAt: "2026-01-01T00:00:00.000Z" };
}

/** Which one it is, of a payload that was decoded. */
export function numberOf(order: unknown): number {
  return Number((order as { orderId: string }).orderId.slice("order-".length));
}
