import { serve } from "sortie/aws-lambda";
import { app } from "./app.ts";

export const { http, pull, release } = serve(app);
