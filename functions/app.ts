import { createApp, NonRetriableError, RetryAfterError } from "sortie";
import { billing, dead, images, monthly, orders, reminders, resizer, statements } from "./orders.ts";
import { charge, resize } from "./services.ts";

export const app = createApp({ name: "sample", streams: [orders, images, dead], schedules: [monthly] })
  .on(billing, async ({ data, attempt }, { schedule }) => {
    const { orderId, card, cents, remindAfterSeconds } = data;
    // checked now, sent when the handler has succeeded
    await schedule("orders.reminder", { orderId }, { in: remindAfterSeconds * 1000, id: `reminder-${orderId}` });
    const { status } = await charge({ card, cents, idempotencyKey: orderId }, attempt);
    if (status === 402) throw new NonRetriableError("card declined");
    if (status === 429) throw new RetryAfterError("the payment provider is busy", "2s");
    log({ event: "charged", orderId, cents, attempt });
  })
  .on(reminders, ({ data }) => {
    log({ event: "reminded", orderId: data.orderId });
  })
  .on(statements, ({ schedule }) => {
    log({ event: "statement", planned: schedule?.plannedAt });
  })
  .on(resizer, async ({ data }) => {
    await resize(data.url);
    log({ event: "resized", url: data.url, width: data.width });
  });

function log(entry: Record<string, unknown>): void {
  console.log(JSON.stringify(entry));
}
