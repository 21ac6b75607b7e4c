import { defineConsumer, defineSchedule, defineStream, exponential } from "sortie";
import * as z from "zod";

const Order = z.object({
  orderId: z.string().min(1),
  card: z.string(),
  cents: z.int().positive(),
  remindAfterSeconds: z.number().positive().max(2_000_000).default(86_400), // well within the stream's maxAge
});

export const orders = defineStream("ORDERS", {
  subjects: {
    "orders.placed": Order,
    "orders.reminder": z.object({ orderId: z.string() }),
    "orders.statement": z.object({ of: z.literal("month") }),
  },
  maxAge: "30d",
});

export const images = defineStream("IMAGES", {
  subjects: { "images.resize": z.object({ url: z.url(), width: z.int().min(1).max(4096) }) },
  retention: "workqueue",
});

export const dead = defineStream("DEAD", { captures: ["dead.>"], maxAge: "90d" });

export const billing = defineConsumer(orders, "billing", {
  filter: "orders.placed",
  retry: { attempts: 5, backoff: exponential("1s", { max: "5m" }) },
  deadLetter: "dead.orders.billing",
});

export const reminders = defineConsumer(orders, "reminders", {
  filter: "orders.reminder",
  deadLetter: "dead.orders.reminders",
});

export const statements = defineConsumer(orders, "statements", {
  filter: "orders.statement",
  deadLetter: "dead.orders.statements",
});

export const monthly = defineSchedule(orders, "monthly-statement", {
  subject: "orders.statement",
  data: { of: "month" },
  cron: "0 6 1 * *",
  timeZone: "Europe/Berlin",
  overlap: "skip", // none while the last one is still being written
});

export const resizer = defineConsumer(images, "resizer", {
  concurrency: 4,
  deadLetter: "dead.images.resizer",
});
