import * as z from "zod";
import { defineStream } from "../../src/index.ts";

/** Schedules for another subject of the same stream, which a function releases. */
export const tasks = defineStream("TASKS", { subjects: { "tasks.later": z.object({ n: z.number() }) } });
