import { serve } from "sortie/aws-lambda";
import { app } from "../workers/app.ts";

export const { http } = serve(app);

process.on("SIGTERM", () => {}); // what an extension does at the end is not over yet
