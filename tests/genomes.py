"""A genome and windows of it, for tests of regions."""



def write(tmp_path, content, name="some.bed"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_fasta(tmp_path, genome, end="\n", name="genome.fa"):
    text = "".join(
        f">{name} of a test{end}" + "".join(f"{sequence[i:i + 7]}{end}" for i in range(0, len(sequence), 7))
        for name, sequence in genome.items()
    )
    return write(tmp_path, text, name)

NARROW = (
    "chr1\t100\t200\tpeak one\t900\t+\t5.5\t-1\t1e-3\t30\n"
    "chr2\t50\t61\tpeak_2\t10\t-\t5\t4.25\t3\t-1\n"
    "chrX\t0\t9\t.\t0\t.\t.\t.\t.\t8\n"
)


def columns(regions):
    return [
        column.tolist()
        for column in (regions.chromosomes, regions.starts, regions.ends, regions.summits, regions.names, regions.strands)
    ]
