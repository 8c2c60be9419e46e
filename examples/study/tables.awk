# Tables of a study, as Markdown, from lines "data,method,part,variant,seed,images,k-NN,rank,similarity,loss".
# A run has collapsed when all images look alike to it (effective rank below 1.1) or its features tell nothing (k-NN below
# 20%, two times chance). An asterisk: no better than the same network before training.
BEGIN { FS = "," }

function collapsed(accuracy, rank) { return accuracy < 20 || rank < 1.1 }
function mark(data, accuracy) { return (data in untrained) && accuracy <= untrained[data] ? "*" : "" }

{
    data = $1; method = $2; part = $3; variant = $4
    if (!(data in datas)) { datas[data] = ++data_count; data_name[data_count] = data }
    if (part == "baseline") {
        if (method == "untrained") untrained[data] = $7
        else pixels[data] = $7
    } else if (part == "methods") {
        n[data, method]++
        sum[data, method] += $7
        square[data, method] += $7 * $7
        list[data, method] = list[data, method] (n[data, method] > 1 ? ", " : "") $7
        images[data, method] = $6
        rank[data, method] += $8
        fallen[data, method] += collapsed($7, $8)
        any_methods = 1
    } else {
        kind = variant
        sub(/=.*/, "", kind)
        value[data, method, variant] = $7
        rank_of[data, method, variant] = $8
        bad[data, method, variant] = collapsed($7, $8)
        if (!((data, variant) in seen)) { seen[data, variant] = 1; variants[data] = variants[data] " " variant }
        runs[data, method]++
        accuracies[data, method] = accuracies[data, method] " " $7
        failed[data, method] += collapsed($7, $8)
        if (!((data, method) in low) || $7 < low[data, method]) low[data, method] = $7
        if (!((data, method) in high) || $7 > high[data, method]) high[data, method] = $7
        any_robustness = 1
    }
}

END {
    count = split("simdino dino simdinov2 dinov2", methods, " ")
    for (d = 1; d <= data_count; d++) {
        data = data_name[d]
        print "### " data "\n"
        if (data in untrained)
            printf "The network before training: %.2f; raw pixels: %.2f.\n\n", untrained[data], pixels[data]
        if (any_methods) {
            print "| method | k-NN top-1, mean +- deviation | each seed | images seen | effective rank | collapsed |"
            print "|---|---|---|---|---|---|"
            for (i = 1; i <= count; i++) {
                m = methods[i]
                c = n[data, m]
                if (c == 0) continue
                mean = sum[data, m] / c
                variance = c > 1 ? (square[data, m] - c * mean * mean) / (c - 1) : 0
                printf "| %s | %.2f +- %.2f | %s | %d | %.1f | %d of %d |\n", m, mean,
                    sqrt(variance > 0 ? variance : 0), list[data, m], images[data, m], rank[data, m] / c,
                    fallen[data, m], c
            }
            print ""
        }
        if (any_robustness) {
            line = "| varied |"; rule = "|---|"
            for (i = 1; i <= count; i++) { line = line " " methods[i] " |"; rule = rule "---|" }
            print line "\n" rule
            c = split(variants[data], names, " ")
            for (v = 1; v <= c; v++) {
                line = "| " names[v] " |"
                for (i = 1; i <= count; i++) {
                    if ((data, methods[i], names[v]) in value)
                        line = line sprintf(" %.2f%s%s |", value[data, methods[i], names[v]],
                            mark(data, value[data, methods[i], names[v]]),
                            bad[data, methods[i], names[v]] ? " (collapsed)" : "")
                    else
                        line = line " |"
                }
                print line
            }
            line = "| **collapsed** |"
            for (i = 1; i <= count; i++) line = line sprintf(" %d of %d |", failed[data, methods[i]], runs[data, methods[i]])
            print line
            line = "| **no better than untrained** |"
            for (i = 1; i <= count; i++) {
                k = split(accuracies[data, methods[i]], each, " ")
                worse = 0
                for (v = 1; v <= k; v++) worse += mark(data, each[v]) != ""
                line = line sprintf(" %d of %d |", worse, k)
            }
            if (data in untrained) print line
            line = "| **lowest .. highest** |"
            for (i = 1; i <= count; i++) line = line sprintf(" %.2f .. %.2f |", low[data, methods[i]], high[data, methods[i]])
            print line "\n"
        }
    }
}
